# Everything that is needed to use, test and install pvetools on a fresh Debian or Ubuntu host.
#   sudo make demo   sets everything up and shows a VM and a container from creation to restore
#   sudo make test   sets everything up and runs every check and test

SHELL := /bin/bash
PYTHON := /usr/bin/python3
VENV := .venv
PREFIX := /usr/local
LIB := $(PREFIX)/lib/pvetools
TOOLS := qm pct pvesm pvesh vzdump qmrestore pvenode

SANDBOXED = $(VENV)/bin/python -m tests.sandbox.enter --

# what the tools need; python3-libvirt, python3-lxc and python3-libnbd are the distribution's bindings
APT_RUN := libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils lxc uidmap python3 python3-venv python3-pip \
	python3-libvirt python3-lxc python3-libnbd iproute2 e2fsprogs util-linux mount tar rsync zstd lzop gzip pigz bzip2 xz-utils openssl
# what the demo and the tests need besides
APT_TEST := debootstrap busybox-static kmod cpio mtools syslinux syslinux-common fdisk dosfstools man-db bash-completion attr acl \
	btrfs-progs ceph-common ceph-mon ceph-mgr ceph-osd qemu-block-extra tgt virtnbdbackup libnbd-bin socat iputils-ping procps kbd sudo
# a registry, and what the simulated ESXi host is built with: large, so the demo does without
APT_PEERS := golang-go golang-github-vmware-govmomi-dev docker-registry

export DEBIAN_FRONTEND := noninteractive
# compiled modules are kept: tests start the tools hundreds of times
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-pure test-vm test-storage assets lint test-matrix conformance bench generate install uninstall packages packages-test clean

demo: assets
	$(SANDBOXED) $(CURDIR)/$(VENV)/bin/python -m tests.demo

# pure logic beside the storage VM, which takes one core; then what has deadlines to meet has the machine for itself
test: lint assets $(VENV)/peers
	$(VENV)/bin/python -m tests.storage_vm.build
	$(MAKE) -j2 -Otarget --no-print-directory test-pure test-vm
	$(SANDBOXED) $(CURDIR)/$(VENV)/bin/python -m pytest tests/real

test-pure: $(VENV)/ready
	$(SANDBOXED) $(CURDIR)/$(VENV)/bin/python -m pytest tests --ignore tests/real

# of the tests in the storage VM, the core of each backend; Ceph has its turn on the host
test-vm: $(VENV)/ready
	$(VENV)/bin/python -m pytest -p tests.storage_vm.plugin tests/real/storage_vm -m core --ignore tests/real/storage_vm/test_krbd.py

# all tests of storage backends against real servers and devices, in a VM of their own that is built once
test-storage: assets
	$(VENV)/bin/python -m tests.storage_vm.build
	$(VENV)/bin/python -m pytest -p tests.storage_vm.plugin tests/real/storage_vm

# guest image and container templates, cached; made before the sandbox is entered, which reaches no mirror
assets: $(VENV)/ready
	$(VENV)/bin/python -m tests.sandbox.assets

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/vulture
	$(VENV)/bin/deptry .

conformance: $(VENV)/ready
	$(VENV)/bin/python -m pytest tests/conformance

bench: $(VENV)/ready
	$(SANDBOXED) $(CURDIR)/$(VENV)/bin/python -m tests.bench.run

# the same tests in fresh roots of both Debian generations
test-matrix: $(VENV)/ready
	$(VENV)/bin/python -m tests.matrix

# completion and man pages from the declarations
generate: $(VENV)/ready
	$(VENV)/bin/python -m pvetools.cli.generate

# Install packages; the server among them that was not there before is for the tests alone, which start their own.
install_idle = had=$$(dpkg-query -W -f='$${db:Status-Abbrev}' $(1) 2>/dev/null); \
	apt-get install -y -q --no-install-recommends $(2) || exit 1; \
	if [ "$${had% }" != ii ] && [ -d /run/systemd/system ]; then systemctl disable --now $(1).service; fi

packages:
	apt-get update -q
	apt-get install -y -q --no-install-recommends $(APT_RUN)

packages-test:
	apt-get update -q
	$(call install_idle,tgt,$(APT_RUN) $(APT_TEST))

# The distribution's bindings come through the system's site-packages, everything else from PyPI.
requirements = $(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	names = p["dependencies"] + $(1); print(*[n for n in names if n not in ("lxc", "libvirt-python")], sep="\n")'

$(VENV)/ready: pyproject.toml Makefile
	$(MAKE) packages-test
	$(PYTHON) -m venv --clear --system-site-packages $(VENV)
	$(call requirements,p["optional-dependencies"]["test"]) > $(VENV)/requirements.txt
	$(VENV)/bin/pip install -q --disable-pip-version-check -r $(VENV)/requirements.txt
	echo $(CURDIR) > $$($(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pvetools.pth
	touch $@

$(VENV)/peers: $(VENV)/ready
	apt-get update -q
	$(call install_idle,docker-registry,$(APT_PEERS))
	touch $@

install: packages
	$(PYTHON) -m venv --clear --system-site-packages $(LIB)
	$(call requirements,[]) > $(LIB)/requirements.txt
	$(LIB)/bin/pip install -q --disable-pip-version-check -r $(LIB)/requirements.txt
	rm -rf build
	$(LIB)/bin/pip install -q --disable-pip-version-check --no-deps .
	install -d $(PREFIX)/sbin $(PREFIX)/share/bash-completion/completions $(PREFIX)/share/man/man1 $(PREFIX)/share/man/man5
	for tool in $(TOOLS); do \
		printf '#!%s -E\nfrom pvetools.cli.%s import main\n\nmain()\n' $(LIB)/bin/python3 $$tool > $(PREFIX)/sbin/$$tool && \
		chmod 755 $(PREFIX)/sbin/$$tool && \
		install -m 644 completions/pvetools.bash $(PREFIX)/share/bash-completion/completions/$$tool || exit 1; \
	done
	install -m 644 man/*.1 $(PREFIX)/share/man/man1/
	install -m 644 man/*.5 $(PREFIX)/share/man/man5/
	install -d /etc/systemd/system
	for unit in systemd/*.service; do sed 's|/usr/local/sbin/|$(PREFIX)/sbin/|' $$unit > /etc/systemd/system/$$(basename $$unit) || exit 1; done
	if [ -d /run/systemd/system ]; then systemctl daemon-reload && systemctl enable pvetools-guests.service; fi

uninstall:
	if [ -d /run/systemd/system ]; then systemctl disable pvetools-guests.service; fi
	for unit in systemd/*.service; do rm -f /etc/systemd/system/$$(basename $$unit); done
	for tool in $(TOOLS); do rm -f $(PREFIX)/sbin/$$tool $(PREFIX)/share/bash-completion/completions/$$tool; done
	for page in man/*.1; do rm -f $(PREFIX)/share/man/man1/$$(basename $$page); done
	for page in man/*.5; do rm -f $(PREFIX)/share/man/man5/$$(basename $$page); done
	rm -rf $(LIB)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .hypothesis
