# Commands for contributors; `just --list` shows them. All recipes use the environment in .venv, which `just setup` creates.

set shell := ["bash", "-euo", "pipefail", "-c"]

bin := ".venv/bin"

# List the recipes.
default:
    @just --list

# Create .venv and install raycap with the dependencies of development and documentation.
setup:
    python3 -m venv --upgrade-deps .venv
    {{ bin }}/pip install -q -e '.[dev,docs]'

# Run the tests that CI runs; arguments go to pytest.
test *args:
    {{ bin }}/python -m pytest -q -n auto {{ args }}

# Run the slow tests, which CI leaves out because each takes minutes; arguments go to pytest.
test-slow *args:
    {{ bin }}/python -m pytest -q -m slow {{ args }}

# Run the checks of the learner on CUDA, or on the CPU if there is no GPU; CI leaves them out. Arguments go to pytest.
test-gpu *args:
    {{ bin }}/python -m pytest -q -m gpu {{ args }}

# Run the tests that use Ray with another of its versions, such as 2.56.1, in an environment of its own; arguments go to pytest.
test-ray version *args:
    python3 -m venv --upgrade-deps .venv/ray-{{ version }}
    .venv/ray-{{ version }}/bin/pip install -q -e '.[dev]' 'ray[default,train,tune]=={{ version }}'
    .venv/ray-{{ version }}/bin/python -m pytest -q -n 0 -m 'ray and not slow' {{ args }}

# Check lint rules and formatting.
lint:
    {{ bin }}/ruff check .
    {{ bin }}/ruff format --check .

# Check types.
types:
    {{ bin }}/mypy

# Check the import contracts between layers.
contracts:
    {{ bin }}/lint-imports

# Build the manual into site/; warnings are errors.
docs:
    {{ bin }}/mkdocs build --strict

# Run the demo: eight small models, about three minutes on two cores.
demo:
    {{ bin }}/python -m raycap.sweep specs/grid.yaml
