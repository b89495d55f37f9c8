# cloudinit-conntrack: `make help` says what there is.
.DEFAULT_GOAL := help
PYTEST := .venv/bin/python -m pytest

.PHONY: help prepare demo test check upstream netns cloudinit guest bench lockout fuzz clean

help: ## say what there is
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

prepare: ## install what tests and demo need (Debian 12, root)
	@tests/prepare

demo: ## the main job in a guest: before, apply, second boot, revert
	@command -v python3 >/dev/null || { apt-get update -q && apt-get install -qy --no-install-recommends python3; }
	python3 -m tests.guest.demo

test: prepare ## everything that CI runs
	$(PYTEST) tests

check: prepare ## linters and unit tests
	$(PYTEST) tests/unit

upstream: prepare ## iptables' own test rules as judge of the language
	$(PYTEST) tests/upstream

netns: prepare ## real rules and packets in network namespaces
	$(PYTEST) tests/netns

cloudinit: prepare ## the four real versions of cloud-init
	$(PYTEST) tests/cloudinit

guest: prepare ## real modules in guests: user-mode Linux, and Debian's kernels 5.10 to the newest in QEMU
	$(PYTEST) tests/guest

bench: prepare ## the rewrite beside the kernel's own loader; a boot with nothing to do
	.venv/bin/python -m bench.rewrite
	.venv/bin/python -m bench.boot

lockout: prepare ## COUNT generated rule-sets (500): ssh works before, and after apply and revert
	.venv/bin/python -m tests.netns.lockout $(or $(COUNT),500)

fuzz: prepare ## FUZZ mutated inputs (20000) of each kind that we read
	FUZZ=$(or $(FUZZ),20000) $(PYTEST) tests/unit/test_fuzz.py

clean: ## remove what was built
	rm -rf .venv build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
