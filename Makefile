# SPDX-License-Identifier: GPL-2.0
#
# Builds the module with the kernel's own build system (Kbuild has the rules) and runs everything else through
# tools/testing/vm/enter, which makes what it needs. See 'make help'.

# A kernel tree prepared for external modules written in Rust.
KDIR ?= /lib/modules/$(shell uname -r)/build
# The kernel that 'make kdir' prepares a tree for.
RELEASE ?= $(shell uname -r)

comma := ,
space := $(subst ,, )

VM := tools/testing/vm
ENTER := $(VM)/enter

# Certificates that are built into the module, with commas between. The kernel's build works elsewhere.
comma := ,
space := $(subst ,, )
CERTIFICATES = $(subst $(space),$(comma),$(abspath $(subst $(comma),$(space),$(CERT))))
# What a build with certificates leaves here.
BUILT_IN := rust/ima_trim_certificates.h
# The version: cargo and Kbuild take it from there, too.
VERSION := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' tools/Cargo.toml)

# Where cargo builds the program, and the program there.
TARGET := $(or $(CARGO_TARGET_DIR),tools/target)
PROGRAM := $(TARGET)/release/ima-trim
# With DESTDIR everything goes below it, the module included, unless that has a directory of its own.
INSTALL_MOD_PATH ?= $(DESTDIR)

.PHONY: modules tools install install-module install-tools deb kdir demo test test-debug test-all storm fuzz bench shell lint update clean distclean help

# A module that was built with certificates is not exchanged for one without by forgetting to name them again.
modules:
	@$(VM)/check-tree '$(KDIR)'
	@[ -n '$(CERT)' ] || [ ! -e $(BUILT_IN) ] || { \
		echo "error: the module here was built with certificates: name them again with CERT=, or 'make clean' first" >&2; \
		exit 1; \
	}
	$(MAKE) -C '$(KDIR)' M='$(CURDIR)' $(if $(CERT),CERT='$(CERTIFICATES)') modules

tools:
	cargo build --manifest-path tools/Cargo.toml --package ima-trim --release --locked --target-dir '$(TARGET)'

install: install-module install-tools

# The distribution's key is not to be had, so the module is signed only where the owner of the machine names a key.
install-module: modules
ifdef SIGN_KEY
	'$(KDIR)/scripts/sign-file' sha256 '$(SIGN_KEY)' '$(SIGN_CERT)' ima_trim.ko
endif
	$(MAKE) -C '$(KDIR)' M='$(CURDIR)' INSTALL_MOD_PATH='$(INSTALL_MOD_PATH)' CONFIG_MODULE_SIG_ALL= modules_install
	PATH=$$PATH:/usr/sbin:/sbin depmod $(if $(INSTALL_MOD_PATH),-b '$(INSTALL_MOD_PATH)') "$$(cat '$(KDIR)/include/config/kernel.release')"

# A configuration that is there stays as it is.
install-tools: FILES := tools/ima-trim/install
install-tools: SHARE := $(DESTDIR)/usr/share
install-tools: tools
	install -D -m 755 '$(PROGRAM)' '$(DESTDIR)/usr/sbin/ima-trim'
	install -D -m 644 $(FILES)/ima-trim.service '$(DESTDIR)/usr/lib/systemd/system/ima-trim.service'
	install -D -m 644 $(FILES)/sysusers.conf '$(DESTDIR)/usr/lib/sysusers.d/ima-trim.conf'
	install -D -m 644 $(FILES)/tmpfiles.conf '$(DESTDIR)/usr/lib/tmpfiles.d/ima-trim.conf'
	mkdir -p '$(SHARE)/man/man8'
	sed 's/^\.Os$$/.Os "ima-trim $(VERSION)"/' tools/ima-trim/ima-trim.8 >'$(SHARE)/man/man8/ima-trim.8'
	[ -e '$(DESTDIR)/etc/ima-trim.toml' ] || install -D -m 644 $(FILES)/ima-trim.toml '$(DESTDIR)/etc/ima-trim.toml'
	mkdir -p '$(SHARE)'/bash-completion/completions '$(SHARE)'/zsh/vendor-completions '$(SHARE)'/fish/vendor_completions.d
	'$(PROGRAM)' completions bash >'$(SHARE)/bash-completion/completions/ima-trim'
	'$(PROGRAM)' completions zsh >'$(SHARE)/zsh/vendor-completions/_ima-trim'
	'$(PROGRAM)' completions fish >'$(SHARE)/fish/vendor_completions.d/ima-trim.fish'

# Files that are named are those of the machine that this runs on, and not of the build root.
deb:
	@IMA_TRIM_FILES='$(SIGN_KEY),$(SIGN_CERT),$(CERT)' IMA_TRIM_DEBEMAIL="$$DEBEMAIL" IMA_TRIM_DEBFULLNAME="$$DEBFULLNAME" \
		IMA_TRIM_EPOCH="$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || stat -c %Y tools/Cargo.toml)}" \
		$(ENTER) tools/packaging/deb --revision '$(or $(REVISION),1)' $(if $(filter command environment,$(firstword $(origin RELEASE))),$(RELEASE)) \
		$(foreach name,CERT SIGN_KEY SIGN_CERT,$(if $($(name)), \
			'$(name)=$(subst $(space),$(comma),$(realpath $(subst $(comma),$(space),$($(name)))))'))

kdir:
	@$(ENTER) $(VM)/kdir '$(RELEASE)'

demo:
	@$(ENTER) $(VM)/vm.py --name demo --no-load tools/testing/demo/session
	@$(ENTER) $(VM)/vm.py --name demo-whole --no-load --program tools/testing/demo/whole

# Another kernel than the usual one: the rest was tested with that.
test:
	@$(ENTER) $(VM)/test.py $(if $(SUITE)$(FLAVOUR),--kernel-only) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(T)

test-debug:
	@$(ENTER) $(VM)/test.py $(patsubst %,--debug %,$(if $(KERNEL),$(KERNEL),kasan variant)) $(if $(SEED),--seed $(SEED)) $(T)

test-all:
	@.ci/run --all

storm:
	@$(ENTER) $(VM)/test.py $(if $(KERNEL),--debug $(KERNEL)) --seconds $$((60 * $(or $(MINUTES),3))) $(if $(SEED),--seed $(SEED)) storm

fuzz:
	@$(ENTER) $(VM)/fuzz $(or $(SECONDS),60) $(T)

# Only what was measured in full is written to the tree.
bench:
	@$(ENTER) $(VM)/bench $(if $(PART),--part $(PART)) $(if $(RECORDS),--records $(RECORDS) --repeats 3,--write Documentation/benchmarks)

shell:
	@$(ENTER) $(VM)/vm.py --name shell $(if $(KERNEL),--debug $(KERNEL) --memory 2048)

lint:
	@$(ENTER) $(VM)/lint

update:
	@IMA_TRIM_UPDATE=1 $(ENTER) $(VM)/update

clean:
	find . \( -name .git -o -path ./tools/target \) -prune -o -type f \( -name '*.o' -o -name '*.ko' -o -name '*.mod' -o -name '*.mod.c' \
		-o -name '*.rmeta' -o -name '.*.cmd' -o -name '.*.d' -o -name modules.order -o -name Module.symvers \) -exec rm -f {} +
	rm -f $(BUILT_IN)
	rm -rf tools/target deb

distclean: clean
	@$(ENTER) --remove

help:
	@echo 'Building, for the running kernel or for KDIR=<prepared tree>:'
	@echo '  make               build ima_trim.ko with the toolchain on PATH; with CERT=<certificate>[,<certificate>...] one that takes'
	@echo '                     only requests that were signed with their keys, and locks the list until reboot'
	@echo '  make tools         build the program ima-trim with the cargo on PATH'
	@echo '  make install       install both where the system finds them; with SIGN_KEY=<pem> SIGN_CERT=<der> the module signed,'
	@echo '                     with DESTDIR=<directory> below that'
	@echo '  make kdir          prepare a tree for the running kernel, or for RELEASE=<release>'
	@echo '  make clean         remove what the build left here'
	@echo
	@echo 'In the build root, for any machine that has the kernel:'
	@echo '  make deb           Debian packages of the module and the program, in deb/, for the current kernel of the suite, for'
	@echo '                     RELEASE=<release> or for RELEASE=all; SIGN_KEY=, SIGN_CERT= and CERT= as above, REVISION=<revision>'
	@echo
	@echo 'In guests on this machine; the first one sets everything up, see tools/testing/vm/enter:'
	@echo '  make demo          show a trim on a stock kernel with a software TPM'
	@echo '  make test          run all tests, or T=host, T=install, T=protocols, T=calls, T=compile, T=keylime'
	@echo '                     or T=<scenario> alone; T=package, the packages on a machine of their own, only so'
	@echo '  make test-debug    the tests in guests on two debug kernels built here, or KERNEL=kasan or variant, T=<scenario>'
	@echo '  make test-all      what .ci/run does, the packages, the other flavours, SUITE=forky and the other debug kernel'
	@echo '  make storm         everything at once for 3 minutes, or MINUTES=<n>; KERNEL=kasan on that kernel, SEED=<seed>'
	@echo '  make fuzz          fuzz the parsers and the replay for 60 s each, or SECONDS=<n>; T=<target> alone'
	@echo '  make bench         measure it against the kernel, into Documentation/benchmarks; RECORDS=1000 for a quick look,'
	@echo '                     PART=module or program for one of the two'
	@echo '  make shell         an interactive guest with the module loaded'
	@echo '  make lint          rustfmt, clippy, shellcheck and what the sources must not have'
	@echo '  make update        look for a newer kernel now, not after a day, and compare it with those that were read'
	@echo '  make distclean     clean, and remove the cache of the build root, kernels and guests'
	@echo
	@echo 'SUITE=<suite> names where the kernel comes from (trixie-backports), FLAVOUR=rt or cloud another one of that suite.'
	@echo 'With either, make test leaves out what does not depend on the kernel.'
