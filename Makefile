# cloudinit-conntrack: `make help` says what there is.
.DEFAULT_GOAL := help
PYTEST := .venv/bin/python -m pytest
# One process for each core; what only an idle machine can judge comes before, alone.
TOGETHER := $(PYTEST) -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder -m "not alone"
ALONE := $(PYTEST) -m alone

.PHONY: help prepare demo test check upstream netns crash soak cloudinit guest guests image bench lockout fuzz \
	packages packaged autoscaling docs docs-look clean

help: ## say what there is
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

prepare: ## install what tests and demo need (Debian 12, root)
	@tests/prepare

demo: ## the main job in a guest: before, apply, second boot, revert
	@command -v python3 >/dev/null || { apt-get update -q && apt-get install -qy --no-install-recommends python3; }
	python3 -m tests.guest.demo

test: prepare ## everything that CI runs
	@packages/prepare
	$(ALONE) tests/netns
	$(TOGETHER) tests

check: prepare ## linters and unit tests
	$(TOGETHER) tests/unit

upstream: prepare ## iptables' own test rules as judge of the language
	$(TOGETHER) tests/upstream

netns: prepare ## real rules and packets in network namespaces
	$(ALONE) tests/netns
	$(TOGETHER) tests/netns

crash: prepare ## apply and revert killed at every boundary, all cases (half an hour)
	CRASH_EVERYTHING=1 $(PYTEST) tests/netns/test_crash.py tests/guest/test_modules_crash.py

soak: prepare ## COUNT times (200) unload and revert in a guest, with clients
	SOAK=$(or $(COUNT),200) $(PYTEST) tests/guest/test_modules_cycles.py

cloudinit: prepare ## the four real versions of cloud-init
	$(TOGETHER) tests/cloudinit

guest: prepare ## real modules in guests: user-mode Linux, and Debian's kernels 5.10 to the newest in QEMU
	KERNELS=all $(TOGETHER) tests/guest

guests: prepare ## full guests of Debian 11, 12 and 13: nine boots, half an hour
	FULL_GUESTS=all $(PYTEST) tests/guest/test_full_debians.py

image: prepare ## bake a Debian 12 image by Packer's qemu builder, boot two clones (build/image; a quarter of an hour)
	IMAGE=build/image $(PYTEST) -s tests/guest/test_image.py

bench: prepare .venv-bench/made ## what conntrack costs a balancer, and what this program takes; results and plots
	.venv/bin/python -m bench.rewrite
	.venv/bin/python -m bench.boot
	.venv/bin/python -m bench.effect
	.venv/bin/python -m bench.memory
	.venv/bin/python -m bench.start
	.venv/bin/python -m bench.handle
	.venv/bin/python -m bench.unit
	.venv-bench/bin/python -m bench.plots

.venv-bench/made: bench/requirements.txt
	/usr/bin/python3 -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

lockout: prepare ## COUNT generated rule-sets (500): ssh works before, and after apply and revert
	.venv/bin/python -m tests.netns.lockout $(or $(COUNT),500)

fuzz: prepare ## FUZZ mutated inputs (20000) of each kind that we read
	FUZZ=$(or $(FUZZ),20000) $(PYTEST) tests/unit/test_fuzz.py

packages: ## sdist, wheel, .deb and .rpm into dist/ (docs/how-to/packages.md)
	@packages/build dist

packaged: prepare ## packages: lintian, the same bytes twice, each shell, every test in Debian 11, 12 and 13
	@packages/prepare fish lintian zsh
	PACKAGED=1 $(PYTEST) tests/packages

# The clouds' own tools are heavy (two minutes to install): an environment of their own.
autoscaling: prepare ## the templates of examples/autoscaling, by cfn-lint, moto, Heat, and systemd in a guest
	[ -x .venv-autoscaling/bin/cfn-lint ] || { python3 -m venv .venv-autoscaling && \
		.venv-autoscaling/bin/pip install -q -r tests/autoscaling/requirements.txt; }
	AUTOSCALING=1 .venv-autoscaling/bin/python -m pytest --confcutdir=tests/autoscaling tests/autoscaling
	AUTOSCALING=1 $(PYTEST) tests/guest/test_full_gate.py

docs: prepare ## the documentation as a site that needs no network (build/site)
	@.venv/bin/python -m website.reference
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

docs-look: docs ## every page of it in a real browser, at two widths (installs chromium; pictures in build/look)
	@dpkg-query -W chromium-driver python3-selenium >/dev/null 2>&1 || { apt-get update -q && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium-driver python3-selenium; }
	/usr/bin/python3 -m website.look build/site build/look

clean: ## remove what was built
	rm -rf .venv .venv-autoscaling .venv-bench build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
