"""What must hold before a release. Not part of the installed package: see CONTRIBUTING.md."""
