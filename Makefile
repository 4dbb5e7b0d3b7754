# The README's two commands are `make quickstart` and `make test`.
VENV ?= .venv
PYTHON_RUN = $(VENV)/bin/python
.PHONY: setup setup-gpu quickstart quickstart-scienceworld quickstart-webshop test pytest test-all check lint types docs \
  audit test-verl test-pins lock lock-gpu check-locks embedded-model embedded-model-thinking embedded-model-full \
  embedded-model-scienceworld embedded-model-webshop clean

setup:            ## the pinned CPU environment in .venv
	@requirements/install.sh $(VENV)

SET ?= gpu
setup-gpu:        ## a pinned NVIDIA GPU environment in .venv-SET; SET=gpu (verl's pins) or gpu-tested (our tests')
	@requirements/install-gpu.sh .venv-$(SET) $(SET)

quickstart: setup ## all of ACT on generated ALFWorld games on this CPU; results in runs/quickstart
	$(PYTHON_RUN) -m verl_act run alfworld/quickstart --out runs/quickstart

quickstart-scienceworld quickstart-webshop: quickstart-%: embedded-model-% ## on ScienceWorld (needs Java) or WebShop
	$(PYTHON_RUN) -m verl_act run $*/quickstart --out runs/$@

check: lint types ## format, lint and types

lint: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

types: setup
	$(VENV)/bin/mypy

AT_ONCE ?= 2
test: check pytest ## every check and the tests; AT_ONCE test files side by side, each with up to 8 GiB and a core

pytest: setup     ## the tests alone
	$(VENV)/bin/pytest -m "not nightly" -n $(AT_ONCE) --dist loadfile --no-loadscope-reorder --durations 25

test-all: check   ## the same plus more kinds of runs on verl: PPO, LoRA, clusters, every quickstart (an hour more)
	$(VENV)/bin/pytest -n $(AT_ONCE) --dist loadfile --no-loadscope-reorder --durations 25

docs: setup       ## the documentation site in docs/_build; warnings are errors
	$(VENV)/bin/uv pip install --quiet --python $(PYTHON_RUN) --no-deps -r requirements/docs.txt
	$(PYTHON_RUN) -m sphinx -q -W --keep-going -b html docs docs/_build
	@echo docs/_build/index.html

audit: setup      ## known vulnerabilities of the pinned packages; needs PyPI's JSON API, which few mirrors have
	sed 's/+cpu//' requirements/cpu.txt | \
	  $(VENV)/bin/uv tool run pip-audit==2.10.1 --strict --no-deps --disable-pip -r /dev/stdin

VERL ?= 0.9.0
test-verl: setup  ## what touches verl, against release VERL in its own folder, first on the path
	rm -rf build/verl-$(VERL)
	$(VENV)/bin/uv pip install --quiet --no-deps --target build/verl-$(VERL) verl==$(VERL)
	PYTHONPATH=$(CURDIR):build/verl-$(VERL) $(VENV)/bin/pytest -m "not slow" \
	  tests/test_verl_signatures.py tests/test_plugin.py tests/test_config.py tests/test_dataset.py

# SET=gpu (the pins of requirements/gpu.txt) or newest.
test-pins: setup  ## what touches verl, and two steps of every stage, at other versions on this CPU
	@UV=$(VENV)/bin/uv requirements/test_pins.sh $(SET)

LOCK_GPU = pip compile --quiet ../pyproject.toml --extra all \
  --override gpu-overrides.txt --python-version 3.12 --python-platform x86_64-manylinux_2_28 --no-header
lock-gpu: setup   ## requirements/gpu.txt and gpu-tested.txt from PyPI, for Linux on x86-64
	cd requirements && for set in gpu gpu-tested; do \
	  ../$(VENV)/bin/uv $(LOCK_GPU) $$set.in --output-file $$set.txt || exit 1; done

check-locks: setup ## that both still resolve to the same versions; changes nothing
	cd requirements && for set in gpu gpu-tested; do \
	  ../$(VENV)/bin/uv $(LOCK_GPU) $$set.in --constraint $$set.txt > /dev/null || exit 1; done

PYTORCH_INDEX = --extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match
lock: setup       ## requirements/cpu.txt from cpu.in
	cd requirements && ../$(VENV)/bin/uv pip compile --quiet cpu.in --override overrides.txt --python-version 3.11 \
	  --no-header $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),$(PYTORCH_INDEX)) --output-file cpu.txt

clean:            ## outputs and caches; the environment stays
	rm -rf runs outputs dist build docs/_build .pytest_cache .ruff_cache .mypy_cache .hypothesis

runs/embedded/expert: | setup # from games that no recipe uses
	$(PYTHON_RUN) -m verl_act data games --out runs/embedded/games --counts train=6000 --size small --seed 1000 --workers 2
	$(PYTHON_RUN) -m verl_act data expert --out runs/embedded/expert --workers 2 \
	  --env-settings data=runs/embedded/games alfworld train

embedded-model: runs/embedded/expert ## the package's small initial policy (about 50 minutes on one core)
	$(PYTHON_RUN) -m verl_act dev embedded-model --out verl_act/assets/embedded_model \
	  --trajectories runs/embedded/expert/trajectories.parquet

# The targets below make a model only where it is missing.
embedded-model-thinking: verl_act/assets/embedded_model_thinking ## one that states a subgoal before it answers

verl_act/assets/embedded_model_thinking: runs/embedded/expert | setup # trained further from the one above
	$(PYTHON_RUN) -m verl_act dev embedded-model --out $@ --trajectories runs/embedded/expert/trajectories.parquet \
	  --thoughts --start verl_act/assets/embedded_model --steps 2000 --passes 1 \
	  --learning-rate 0.001 --matrix-learning-rate 0.006

runs/embedded/full_expert: | setup # from generated games in whole rooms, none of them official
	$(PYTHON_RUN) -m verl_act data games --out runs/embedded/full_games \
	  --counts train=1000 --size full --seed 1000 --workers 2
	$(PYTHON_RUN) -m verl_act data expert --out $@ --workers 2 --env-settings data=runs/embedded/full_games alfworld train

embedded-model-full: verl_act/assets/embedded_model_full ## the initial policy of alfworld/official

# Trained further from the model of small rooms, with whole transcripts; ends early (about half an hour on two cores).
verl_act/assets/embedded_model_full: runs/embedded/full_expert | setup
	$(PYTHON_RUN) -m verl_act dev embedded-model --out $@ --trajectories runs/embedded/full_expert/trajectories.parquet \
	  --start verl_act/assets/embedded_model --template-options history_length=null \
	  --expert-share 1 --passes 1 --steps 350 --learning-rate 0.002 --matrix-learning-rate 0.01 --storage bfloat16

embedded-model-scienceworld embedded-model-webshop: embedded-model-%: verl_act/assets/embedded_model_%

SCIENCEWORLD_TASKS = "find-living-thing", "find-non-living-thing", "find-plant", "find-animal", \
  "lifespan-longest-lived", "lifespan-shortest-lived"
verl_act/assets/embedded_model_scienceworld: | setup # from its training variations
	$(PYTHON_RUN) -m verl_act data expert --out runs/embedded/scienceworld --limit 240 --seed 1000 \
	  --env-settings 'simplification=""' --env-settings max_steps=20 \
	  --env-settings 'tasks=[$(SCIENCEWORLD_TASKS)]' scienceworld train
	$(PYTHON_RUN) -m verl_act dev embedded-model --out $@ \
	  --trajectories runs/embedded/scienceworld/trajectories.parquet \
	  --steps 1200 --passes 8 --choice-share 0.5 --storage bfloat16

verl_act/assets/embedded_model_webshop: | setup # from a catalogue that no recipe uses
	$(PYTHON_RUN) -m verl_act dev catalogue --out runs/embedded/catalogue --seed 1000
	$(PYTHON_RUN) -m verl_act data expert --out runs/embedded/webshop \
	  --env-settings data=runs/embedded/catalogue --env-settings observation=brief webshop train
	$(PYTHON_RUN) -m verl_act dev embedded-model --out $@ \
	  --trajectories runs/embedded/webshop/trajectories.parquet \
	  --steps 5000 --choice-share 0.4 --whole-text-share 0.1 --storage bfloat16
