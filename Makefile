# make demo   the main job on the embedded policy: seven to twelve minutes on two cores, after set-up
# make test   the tests
# make check  lint, types, import direction, and the wheel in an empty environment
# make setup  what the others begin with: .venv, its packages, and software Vulkan where there is no GPU
# make rt1    an interpreter with TensorFlow, which RT-1 needs, in .venv-rt1
# make counterparts  the published clients of policy servers, for the tests: .venv-openpi and .venv-vla-eval
# ARGS is passed on: make demo ARGS="seed=1", make test ARGS="-k divergence"

SUITABLE := -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))'
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do $$p $(SUITABLE) 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.DELETE_ON_ERROR:
.PHONY: demo test check setup rt1 counterparts

demo: setup
	$(BIN)/vla-razor demo $(ARGS)

test: setup
	$(BIN)/pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal $(ARGS)

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/check_wheel.py

setup: .venv/.vulkan

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo 'Python 3.11 or 3.12 is needed (ManiSkill 3.0 has no newer): make setup PYTHON=PATH' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo 'This Python cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.packages: pyproject.toml scripts/setup/constraints.txt | $(BIN)/python
	@echo 'installing the packages, about 7 GB: this takes some minutes'
	@$(BIN)/pip install --quiet --quiet --disable-pip-version-check --use-pep517 -e '.[dev]' -c scripts/setup/constraints.txt
	@# With it Gymnasium's RecordVideo writes films. It asks for an older Pillow than ours, for texts that it is not asked to draw.
	@$(BIN)/pip install --quiet --quiet --disable-pip-version-check --no-deps moviepy==2.2.1 proglog==0.1.12 decorator==5.2.1 python-dotenv==1.1.0
	@touch $@

.venv/.vulkan: .venv/.packages scripts/setup/software_vulkan.py
	$(BIN)/python scripts/setup/software_vulkan.py
	@touch $@

rt1: .venv-rt1/.packages
	@echo 'export VLA_RAZOR_TENSORFLOW_PYTHON=$(CURDIR)/.venv-rt1/bin/python'

.venv-rt1/.packages:
	$(PYTHON) -m venv .venv-rt1
	@.venv-rt1/bin/pip install --quiet --quiet --disable-pip-version-check 'tensorflow-cpu>=2.20,<3'
	@touch $@

counterparts: .venv-openpi/.packages .venv-vla-eval/.packages

.venv-openpi/.packages:
	$(PYTHON) -m venv .venv-openpi
	@.venv-openpi/bin/pip install --quiet --quiet --disable-pip-version-check openpi-client==0.1.2 typing_extensions 'numpy<2'
	@touch $@

.venv-vla-eval/.packages:
	$(PYTHON) -m venv .venv-vla-eval
	@.venv-vla-eval/bin/pip install --quiet --quiet --disable-pip-version-check 'vla-eval==0.8.*'
	@touch $@
