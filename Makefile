# make demo | test | check | bench | clients | ray   (needs Python 3.11 or later, nothing else)
# make clients-js                                    (needs Node 20 or later, too)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check bench clients clients-js ray clean

demo: $(VENV)/core.stamp
	$(BIN)/python examples/demo.py

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest

check: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layering.py

clients: $(VENV)/dev.stamp .venv-clients/newest/stamp .venv-clients/older/stamp
	$(BIN)/python -m pytest tests/test_serve_clients.py

clients-js: $(VENV)/dev.stamp tests/clients/js/node_modules/.package-lock.json
	$(BIN)/python -m pytest tests/test_serve_clients_js.py

ray: $(VENV)/dev.stamp $(VENV)/ray.stamp
	$(BIN)/python -m pytest tests/test_integrations_ray.py

bench: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/cpu_latency.py

clean:
	rm -rf $(VENV) .venv-clients tests/clients/js/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis

# One stamp for each set of extras, so that nothing is installed twice. Torch comes first and alone: everything after
# it finds the pinned build in place.
$(VENV)/core.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e .
	touch $@

$(VENV)/%.stamp: $(VENV)/core.stamp
	$(PIP) -e ".[$*]"
	touch $@

# Client libraries that talk to the server in tests. They pin other packages than ours, and than each other: infinity's
# and LangChain's Cohere want older ones than the rest.
.venv-clients/%/stamp: tests/clients/requirements-%.txt
	$(PYTHON) -m venv .venv-clients/$*
	.venv-clients/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

tests/clients/js/node_modules/.package-lock.json: tests/clients/js/package-lock.json
	npm ci --prefix tests/clients/js --ignore-scripts --no-audit --no-fund
	touch $@
