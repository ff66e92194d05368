# Everything runs inside .venv, which is made on first use and brought up to date when pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help venv test test-oldest test-long test-keys test-disk test-strangers test-network test-cluster cluster test-systemd test-upgrade record-release fuzz chaos mutation bench packages test-packages pins check format coverage demo clean

help:
	@echo 'make test      set up and run the tests'
	@echo 'make test-oldest the same tests with the oldest libraries that pyproject.toml allows (PyPI; two minutes)'
	@echo 'make test-long every exit code and signal, hundreds of runs (minutes)'
	@echo 'make test-keys what other tools say of the port and the keys (minutes)'
	@echo 'make test-strangers a thousand strangers at the port, no descriptors (two minutes)'
	@echo 'make test-network a network that breaks between the pair (root, namespaces; a minute)'
	@echo 'make test-cluster two nodes of a real Pacemaker cluster, and its resource agent (root; three minutes)'
	@echo 'make cluster   such a cluster with a guest and two applications, up until it is ended, to play with (root)'
	@echo 'make test-upgrade  this version and the released ones together, under running applications (PyPI; a minute)'
	@echo 'make test-systemd the units under systemd in a container (root, Debian mirror; three minutes)'
	@echo 'make fuzz      sequences of requests that nobody would think of (SECONDS=60 SEED=1)'
	@echo 'make test-disk records torn at every byte; disks, clocks and boots that misbehave (two minutes)'
	@echo 'make chaos     random faults on the running pair (RUNS=300 SEED=1)'
	@echo 'make mutation  break the sources at random places: do the tests notice? (SAMPLE=150 SEED=1; half an hour)'
	@echo 'make packages  .deb and .rpm of host and guest side, into dist/'
	@echo 'make bench     measure this pair beside OpenSSH, Java and the floor; writes docs/performance.md (ROUNDS=3; six minutes)'
	@echo 'make test-packages  the packages for real, in a small Debian of their own (root; two minutes)'
	@echo 'make check     lint, formatting and types (also as on Windows)'
	@echo 'make demo      run the main job for real on loopback'
	@echo 'make coverage  the tests with branch coverage, subprocesses included'
	@echo 'make format    put the formatting right'
	@echo 'make clean     remove what these commands made'

venv: $(STAMP)

# pip learnt --group with 25.1, and the pip that comes with venv may be older.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip >= 25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	touch $(STAMP)

# Side by side, one process for each core, but not more than four: the timing of real processes is tested too.
test: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

# The same with the oldest release of each library that pyproject.toml allows, in an environment of their own.
test-oldest: .venv-oldest/.installed
	@echo "with $$(tr '\n' ' ' < .venv-oldest/oldest.txt)"
	.venv-oldest/bin/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

.venv-oldest/.installed: $(STAMP) tests/oldest.py
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	$(BIN)/python tests/oldest.py > .venv-oldest/oldest.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip >= 25.1'
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --editable . --group test --constraint .venv-oldest/oldest.txt
	touch $@

# Every exit code and signal, and what hundreds of runs leave behind: some five minutes.
test-long: $(STAMP)
	$(BIN)/python -m pytest -q -m long -o timeout=900

# Other tools judge the listening port and the certificates. Each has an environment of its own: it wants other versions of what we use.
test-keys: $(STAMP) .venv-scan/.installed .venv-lint/.installed
	$(BIN)/python -m pytest -q -m keys

.venv-scan/.installed:
	$(PYTHON) -m venv .venv-scan
	.venv-scan/bin/python -m pip install --quiet --disable-pip-version-check 'sslyze >= 6.3'
	touch $@

.venv-lint/.installed:
	$(PYTHON) -m venv .venv-lint
	.venv-lint/bin/python -m pip install --quiet --disable-pip-version-check 'pkilint >= 0.13'
	touch $@

# Cables pulled, packets lost, guests frozen, between network namespaces. Most of it waits: six at once on two cores are fine.
test-network: $(STAMP)
	$(BIN)/python -m pytest -q -n 6 --dist worksteal -m network

# A guest and its applications on two nodes of a real cluster, each a set of namespaces; first the resource agent by itself. As root
# it installs Pacemaker and Corosync where they are missing, and starts nothing outside of its namespaces.
test-cluster: $(STAMP)
	tests/cluster/install
	$(BIN)/python -m pytest -q -n 2 -m cluster tests/test_cluster_agent.py
	$(BIN)/python -m pytest -q -s -m cluster -o timeout=600 tests/test_cluster.py tests/test_cluster_stand.py

# The same cluster, up until it is ended, to play with: see "A cluster to play with" in docs/cluster.md.
cluster: $(STAMP)
	tests/cluster/install
	@PYTHONPATH=tests exec $(BIN)/python -m cluster.stand

# This version and those that were released, side by side under running applications. Each release has an environment of its own.
test-upgrade: $(STAMP)
	$(BIN)/python -m pytest -q -s -m upgrade -o timeout=600 tests/test_upgrade.py

# Keeps programs, a conversation and records of COMMIT for the tests of all later versions. Root. See CONTRIBUTING.md.
COMMIT ?= HEAD
record-release: $(STAMP)
	$(BIN)/python tests/recorder.py --commit $(COMMIT)

# The units under a real systemd, process 1 of a container. Its root file system is built once, into build/.
test-systemd: $(STAMP)
	$(BIN)/python -m pytest -q -s -m systemd -o timeout=900 tests/test_systemd.py

# What a manager may say, and what may happen, in any order. SECONDS is for each of the machines; a failure prints its steps.
SECONDS ?= 60
fuzz: $(STAMP)
	FUZZ_SECONDS=$(SECONDS) FUZZ_SEED=$(SEED) $(BIN)/python -m pytest -q -s -m fuzz -o timeout=0

# A thousand strangers at once, beside thirty managers; and what a server without descriptors does.
test-strangers: $(STAMP)
	$(BIN)/python -m pytest -q -s -m strangers -o timeout=600 tests/test_strangers.py tests/test_descriptors.py

# Every byte of a record, and the real server on full, read-only, removed and failing disks. Root for most of the latter.
test-disk: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m disk

# Random faults: some five runs a second on two cores. RUNS and SEED choose how many and which.
RUNS ?= 300
chaos: $(STAMP)
	$(BIN)/python tests/chaos.py --runs $(RUNS) $(if $(SEED),--seed $(SEED))

# Which of so many broken sources do the tests notice? 150 take half an hour on two cores. SEED repeats a sample.
SAMPLE ?= 150
mutation: $(STAMP) .venv-mutation/.installed
	.venv-mutation/bin/python tests/mutation.py --sample $(SAMPLE) $(if $(SEED),--seed $(SEED)) $(if $(PERCENT),--percent $(PERCENT))

.venv-mutation/.installed:
	$(PYTHON) -m venv .venv-mutation
	.venv-mutation/bin/python -m pip install --quiet --disable-pip-version-check 'mutmut >= 3.8, < 4'  # its operators
	touch $@

# .deb and .rpm of host and guest side, into dist/. SUFFIX=+next1 makes them a later version, to try an upgrade.
packages: $(STAMP)
	$(BIN)/python packages/build_packages.py $(if $(SUFFIX),--suffix $(SUFFIX))

# Built, judged, installed, upgraded under running applications and removed, in a small Debian of its own. Root.
test-packages: $(STAMP)
	$(BIN)/python -m pytest -q -s -m packages -o timeout=900 tests/test_packages.py

# What pins.txt says of the libraries in them is decided anew.
pins: $(STAMP)
	$(BIN)/python packages/pins.py

# Beside what would be used instead, all in one run. The pair is installed as users do it, each time anew, in an environment of its own.
# As root it installs OpenSSH and a JDK where they are missing. FIGURES=0 writes nothing. BENCH adds options, as in BENCH='--json samples.json --sizes 1,30'.
ROUNDS ?= 3
FIGURES ?= 1
bench:
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip >= 25.1'
	.venv-bench/bin/python -m pip uninstall --quiet --disable-pip-version-check --yes cmapp
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check .
	PYTHONPATH=tests CMAPP_FIGURES=$(FIGURES) .venv-bench/bin/python -m bench --rounds $(ROUNDS) $(BENCH)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/flake8 appmgr appserver pki bench packages tests
	$(BIN)/shellcheck -s sh packages/ocf/cmappmgr tests/cluster/guest tests/cluster/install
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 appmgr appserver pki

format: $(STAMP)
	$(BIN)/ruff format .

coverage: $(STAMP)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q
	-$(BIN)/coverage combine --quiet  # whoever was killed while it saved has left a torn file
	$(BIN)/coverage report

demo: $(STAMP)
	$(BIN)/python demo/demo.py

clean:
	rm -rf .venv .venv-releases .venv-scan .venv-lint .venv-mutation .venv-oldest .venv-bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* htmlcov
