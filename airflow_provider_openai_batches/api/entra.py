"""Tokens of Microsoft Entra, for services that know a machine by its identity and not by a key.

``azure-identity`` finds the identity: a workload identity of Kubernetes, a managed identity, a service principal in the
environment, or whoever is logged in with Azure's command line. It keeps the token, and fetches the next one some
minutes before it ends: https://learn.microsoft.com/python/api/overview/azure/identity-readme. A token lasts about an
hour, a batch a day, so each call asks for one.
"""

from __future__ import annotations

from typing import Any

from airflow_provider_openai_batches.api.errors import CredentialError, InvalidInputError

_MISSING = "it needs azure-identity: pip install 'airflow-provider-openai-batches[azure]'."


class TokenSource:
    """The machine's identity, asked for tokens when they are needed.

    :param scope: what the tokens are for
    """

    def __init__(self, scope: str) -> None:
        self._scope = scope
        self._credential: Any = None

    def token(self) -> str:
        """Return a token that is good now, the last one if it still is.

        :raises InvalidInputError: azure-identity is not installed
        :raises CredentialError: there is no identity, or it gets no token
        """
        try:
            from azure.core.exceptions import AzureError, ClientAuthenticationError
            from azure.identity import DefaultAzureCredential
        except ImportError as error:
            raise InvalidInputError("auth", _MISSING) from error
        try:
            if self._credential is None:
                self._credential = DefaultAzureCredential()
            token: str = self._credential.get_token(self._scope).token
        except (AzureError, ValueError) as error:
            refused = isinstance(error, ClientAuthenticationError)
            hint = (
                "Check the identity of this machine (workload identity, managed identity, or AZURE_CLIENT_ID and its "
                "like) and that it may use the resource."
            )
            # The whole of it lists every kind of identity that was tried.
            raise CredentialError(
                f"No token of Microsoft Entra for {self._scope}: {error}. {hint}",
                transient=not refused and isinstance(error, AzureError),
            ) from None
        return token

    def forget(self) -> None:
        """Ask anew next time, whatever the last token's end."""
        if self._credential is not None:
            self._credential.close()
            self._credential = None
