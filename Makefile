# consort: GNU make, out of tree.
#
#   make                              build/consort
#   make test                         unit tests
#   make page                         web/dist/index.html (Node)
#   make DEBUG=1                      build/debug/...
#   make SANITIZE=address,undefined   build/address-undefined/...   (or SANITIZE=thread)
#   make MPI=1                        build/mpi/consort as well: ranks over Open MPI
#   make fuzz                         fuzz targets (clang)
#   make CROSS=aarch64-linux-gnu      build/aarch64-linux-gnu/...
#   make install PREFIX=/usr/local DESTDIR=

.SUFFIXES:
.DELETE_ON_ERROR:

PREFIX ?= /usr/local
DESTDIR ?=
ifneq ($(CROSS),)
PKG_CONFIG ?= PKG_CONFIG_LIBDIR=/usr/lib/$(CROSS)/pkgconfig:/usr/share/pkgconfig pkg-config
else ifeq ($(shell uname -s),Darwin)
# Homebrew keeps these apart, because the system has its own (without pkg-config files).
PKG_CONFIG ?= PKG_CONFIG_PATH="$$(printf '%s/lib/pkgconfig:' $$(brew --prefix libedit openssl@3 \
              sqlite curl))$$PKG_CONFIG_PATH" pkg-config
else
PKG_CONFIG ?= pkg-config
endif
ifneq ($(CROSS),)
CC := $(CROSS)-gcc
AR := $(CROSS)-ar
else ifeq ($(origin CC),default)
CC := cc
endif
CLANG ?= clang

comma := ,
VARIANT := $(CROSS)$(if $(DEBUG),debug)$(if $(SANITIZE),$(subst $(comma),-,$(SANITIZE)))
BUILD ?= build$(if $(VARIANT),/$(VARIANT))

LIBRARIES := libpcre2-8 jansson libutf8proc libedit openssl sqlite3 libcurl yaml-0.1
# Debian's libevent-dev cannot be installed for two machines at once. What it holds for one serves the
# other, but for the library itself.
ifneq ($(shell $(PKG_CONFIG) --exists libevent_core || echo missing),)
LIBEVENT := $(if $(CROSS),-l:libevent_core-2.1.so.7,-levent_core)
else
LIBRARIES += libevent_core
endif
# DNS-SD is a part of macOS. Elsewhere Avahi's library serves, where it is installed.
ifeq ($(shell uname -s),Darwin)
DNS_SD := $(if $(CROSS),,-DCONSORT_DNS_SD)
else ifneq ($(shell $(PKG_CONFIG) --exists avahi-compat-libdns_sd && echo there),)
LIBRARIES += avahi-compat-libdns_sd
DNS_SD := -DCONSORT_DNS_SD
endif
LIBRARY_CFLAGS := $(shell $(PKG_CONFIG) --cflags $(LIBRARIES))
LIBRARY_LIBS := $(shell $(PKG_CONFIG) --libs $(LIBRARIES)) $(LIBEVENT)

WARNINGS := -Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes $(if $(WERROR),-Werror)
CPPFLAGS += -Isrc -D_GNU_SOURCE -D_DARWIN_C_SOURCE $(DNS_SD) $(LIBRARY_CFLAGS)
# Reports of sanitizers need lines, not variables: following those through their checks takes minutes.
CFLAGS += -std=c11 $(if $(SANITIZE),-g1,-g) -pthread -ffp-contract=off $(WARNINGS) \
          $(if $(DEBUG),-O0,$(if $(SANITIZE),-O1,-O2)) \
          $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=all)
LDFLAGS += -pthread $(if $(SANITIZE),-fsanitize=$(SANITIZE))
LDLIBS += $(LIBRARY_LIBS) -lm
ifeq ($(shell uname -s),Darwin)
LDLIBS += -framework IOKit -framework CoreFoundation
endif

# One kernel file per instruction set, each with its own flags; only this machine's are compiled.
TARGET := $(shell $(CC) -dumpmachine)
ifneq ($(filter x86_64%,$(TARGET)),)
KERNEL_ISAS := avx2 avx512 amx
else ifneq ($(filter aarch64% arm64%,$(TARGET)),)
KERNEL_ISAS := neon
endif
# The loops are compiled for each format, which takes long with the sanitizers' checks.
KERNEL_LEVEL := $(if $(DEBUG)$(SANITIZE),-O1,-O3)
# Of pointers that intrinsics follow the address sanitizer knows more; these checks double its time to compile.
VECTOR_CHECKS := $(if $(findstring undefined,$(SANITIZE)),$(addprefix -fno-sanitize=,null alignment object-size \
                                                                       pointer-overflow))
KERNEL_FLAGS_scalar := $(KERNEL_LEVEL)
KERNEL_FLAGS_avx2 := $(KERNEL_LEVEL) $(VECTOR_CHECKS) -mavx2 -mfma -mf16c
KERNEL_FLAGS_avx512 := $(KERNEL_FLAGS_avx2) -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni \
                       -mprefer-vector-width=512
KERNEL_FLAGS_amx := $(KERNEL_FLAGS_avx512) -mavx512bf16 -mamx-tile -mamx-bf16
KERNEL_FLAGS_backend_cpu_rows.c := $(KERNEL_LEVEL)
KERNEL_FLAGS_neon := $(KERNEL_LEVEL) $(VECTOR_CHECKS) -march=armv8.2-a+dotprod

# With MPI=1 there is one program more: a file that only it has, one that knows of it, and all others.
MPI_FILE := src/cluster/comm_mpi.c
MPI_AWARE := src/cli/ranks.c
ifneq ($(MPI),)
MPI_CFLAGS := $(shell $(PKG_CONFIG) --cflags ompi-c 2>/dev/null || mpicc --showme:compile 2>/dev/null)
MPI_LIBS := $(shell $(PKG_CONFIG) --libs ompi-c 2>/dev/null || mpicc --showme:link 2>/dev/null)
ifeq ($(strip $(MPI_LIBS)),)
$(error MPI=1 needs Open MPI: neither pkg-config knows ompi-c nor mpicc is here (Debian: libopenmpi-dev, Homebrew: open-mpi))
endif
endif

ALL_SOURCES := $(filter-out $(MPI_FILE),$(sort $(wildcard src/*/*.c)))
KERNEL_SOURCES := $(filter src/quant/kernels_%.c,$(ALL_SOURCES))
KEPT_KERNELS := src/quant/kernels_scalar.c $(KERNEL_ISAS:%=src/quant/kernels_%.c)
SOURCES := $(KEPT_KERNELS) $(filter-out $(KERNEL_SOURCES),$(ALL_SOURCES)) # the longest first
OBJECTS := $(SOURCES:%.c=$(BUILD)/%.o)
CLI_OBJECTS := $(filter $(BUILD)/src/cli/%,$(OBJECTS))
LIBRARY := $(BUILD)/libconsort.a

# tests/unit needs nothing but the library; tests/reference also reads the reference data.
UNIT_TESTS := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/unit/test_*.c))
SUPPORT := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/fake/*.c) tests/support/reference.c)
# The loops of the AMX kernels once more, with the tiles in plain C.
ifneq ($(filter amx,$(KERNEL_ISAS)),)
SUPPORT += $(BUILD)/tests/support/amx_emulated.o
endif
# tests/sim runs whole clusters in one process, from seeds.
SIM_TESTS := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/sim/test_*.c))
REFERENCE_TESTS := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/reference/test_*.c))
# What the other suites run.
TEST_PROGRAMS := $(BUILD)/tests/support/isa $(BUILD)/tests/support/http_echo \
                 $(BUILD)/tests/support/schema_samples $(BUILD)/tests/support/ranks_logits
PROGRAM := $(BUILD)/consort
ifneq ($(MPI),)
PROGRAM := $(BUILD)/mpi/consort
TEST_PROGRAMS += $(BUILD)/mpi/tests/support/mpi_exchange
endif
FUZZ_TARGETS := $(patsubst tests/fuzz/%.c,build/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))

.PHONY: all page test unit-tests fuzz bench install uninstall clean
all: $(BUILD)/consort $(PROGRAM)

$(BUILD)/consort: $(CLI_OBJECTS) $(LIBRARY)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/mpi/consort: $(MPI_FILE:%.c=$(BUILD)/mpi/%.o) $(MPI_AWARE:%.c=$(BUILD)/mpi/%.o) \
                      $(filter-out $(MPI_AWARE:%.c=$(BUILD)/%.o),$(CLI_OBJECTS)) $(LIBRARY)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS) $(MPI_LIBS)

$(BUILD)/mpi/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(MPI_CFLAGS) -DCONSORT_MPI $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/mpi/tests/%: tests/%.c $(MPI_FILE) $(LIBRARY)
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(MPI_CFLAGS) $(CFLAGS) $(LDFLAGS) -MMD -MP -o $@ $< $(LIBRARY) $(LDLIBS) $(MPI_LIBS)

$(LIBRARY): $(filter-out $(CLI_OBJECTS),$(OBJECTS)) $(BUILD)/web/page.o $(BUILD)/docs/machines.o
	rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(KERNEL_FLAGS_$(patsubst kernels_%.c,%,$(notdir $<))) -MMD -MP -c -o $@ $<

# The page in the browser as arrays of bytes. web/dist/index.html is what `make page` builds from web/; it is part
# of the repository, so that only who changes the page needs Node.
$(BUILD)/web/page.c: web/dist/index.html tools/embed-page
	@mkdir -p $(@D)
	tools/embed-page $< >$@

$(BUILD)/web/page.o: $(BUILD)/web/page.c
	$(CC) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<

# What `consort plan` knows of machines.
$(BUILD)/docs/machines.c: docs/machines.yaml tools/embed-text
	@mkdir -p $(@D)
	tools/embed-text plan_library $< >$@

$(BUILD)/docs/machines.o: $(BUILD)/docs/machines.c
	$(CC) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<

page:
	cd web && npm ci --ignore-scripts && npm run build

$(BUILD)/tests/support/amx_emulated.o: src/quant/kernels_amx.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(KERNEL_FLAGS_amx) -DTILES_EMULATED -MMD -MP -c -o $@ $<

unit-tests: $(UNIT_TESTS) $(SIM_TESTS) $(REFERENCE_TESTS) $(TEST_PROGRAMS)

$(BUILD)/tests/%: tests/%.c $(SUPPORT) $(LIBRARY)
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -Itests/fake $(shell $(PKG_CONFIG) --cflags cmocka) $(CFLAGS) $(LDFLAGS) \
	    -MMD -MP -o $@ $< $(SUPPORT) $(LIBRARY) $(LDLIBS) $(shell $(PKG_CONFIG) --libs cmocka)

test: unit-tests
	@for t in $(UNIT_TESTS) $(SIM_TESTS) $(REFERENCE_TESTS); do $$t || exit 1; done

# Benchmarks of single parts: bench/NAME.c becomes build/bench/NAME.
bench: $(patsubst bench/%.c,$(BUILD)/bench/%,$(wildcard bench/*.c))

$(BUILD)/bench/%: bench/%.c $(LIBRARY)
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -MMD -MP -o $@ $< $(LIBRARY) $(LDLIBS)

fuzz: $(FUZZ_TARGETS)

# The fuzz targets have a build of the library of their own, instrumented for coverage, but for the
# kernels, which would take minutes: files do not steer them, and other builds check their bounds.
FUZZ_FLAGS := -std=c11 -g1 -pthread -ffp-contract=off -fsanitize=fuzzer-no-link,address,undefined \
              -fno-sanitize-recover=all -O1
FUZZ_OBJECTS := $(patsubst %.c,build/fuzz/%.o,$(filter-out src/cli/%,$(SOURCES)))

build/fuzz/src/%.o: src/%.c Makefile
	@mkdir -p $(@D)
	$(CLANG) $(CPPFLAGS) $(FUZZ_FLAGS) $(if $(filter $(KEPT_KERNELS),$<),-fno-sanitize=all) \
	    $(filter-out -O3,$(KERNEL_FLAGS_$(patsubst kernels_%.c,%,$(notdir $<)))) -MMD -MP -c -o $@ $<

build/fuzz/libconsort.a: $(FUZZ_OBJECTS)
	rm -f $@
	$(AR) rcs $@ $^

build/fuzz/fuzz_%: tests/fuzz/fuzz_%.c build/fuzz/libconsort.a
	$(CLANG) $(CPPFLAGS) $(FUZZ_FLAGS) -fsanitize=fuzzer -MMD -MP -o $@ $< \
	    build/fuzz/libconsort.a $(LDLIBS)

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 \
	    $(DESTDIR)$(PREFIX)/share/bash-completion/completions \
	    $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/consort
	install -m 755 $(PROGRAM) $(DESTDIR)$(PREFIX)/bin/consort
	install -m 644 docs/consort.1 $(DESTDIR)$(PREFIX)/share/man/man1/consort.1
	install -m 644 docs/completions/consort.bash \
	    $(DESTDIR)$(PREFIX)/share/bash-completion/completions/consort
	install -m 644 docs/completions/_consort $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_consort
	install -m 644 models/demo.gguf $(DESTDIR)$(PREFIX)/share/consort/demo.gguf
	install -m 644 docs/machines.yaml $(DESTDIR)$(PREFIX)/share/consort/machines.yaml

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/consort $(DESTDIR)$(PREFIX)/share/man/man1/consort.1 \
	    $(DESTDIR)$(PREFIX)/share/bash-completion/completions/consort \
	    $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_consort \
	    $(DESTDIR)$(PREFIX)/share/consort/demo.gguf $(DESTDIR)$(PREFIX)/share/consort/machines.yaml

clean:
	rm -rf build

-include $(OBJECTS:.o=.d) $(MPI_FILE:%.c=$(BUILD)/mpi/%.d) $(MPI_AWARE:%.c=$(BUILD)/mpi/%.d) $(SUPPORT:.o=.d) $(UNIT_TESTS:=.d) $(REFERENCE_TESTS:=.d) $(FUZZ_OBJECTS:.o=.d) $(FUZZ_TARGETS:=.d)
