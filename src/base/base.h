/* base: what every other module needs and libc does not give.
 *
 * Errors, memory (arena, buffer), bounded reading (cursor), UTF-8, files, databases, counter-based
 * randomness, the clock, facts about this machine, and the one pool of compute threads. Everything
 * here may be called from any thread unless its comment says otherwise; an object belongs to one
 * thread at a time.
 */
#ifndef CONSORT_BASE_H
#define CONSORT_BASE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONSORT_VERSION "0.1.0"

#if defined(__GNUC__)
#define BASE_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define BASE_PRINTF(text, first)
#endif

#define ARRAY_COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* ---- Errors ---------------------------------------------------------------------------------- */

#define STATUS_LIST(X)                                                                             \
    X(OK, "done")                                                                                  \
    X(INVALID, "invalid input")                                                                    \
    X(UNSUPPORTED, "not supported")                                                                \
    X(NOT_FOUND, "not found")                                                                      \
    X(LIMIT, "limit exceeded")                                                                     \
    X(MEMORY, "out of memory")                                                                     \
    X(IO, "input/output error")                                                                    \
    X(CANCELLED, "cancelled")                                                                      \
    X(BUSY, "busy")                                                                                \
    X(LOST, "connection lost")

enum status {
#define STATUS_ENUM(name, text) STATUS_##name,
    STATUS_LIST(STATUS_ENUM)
#undef STATUS_ENUM
};

/* One sentence a user can act on: what was wrong, where, what to do. Owned by the caller, who may
 * pass one error down through many calls; a call that succeeds leaves it alone. */
struct error {
    enum status code;
    char text[320];
};

const char *status_text(enum status code);

/* Fills *error (NULL is allowed) and returns code, so that `return error_set(...)` reads well.
 * A text that does not fit is cut on a UTF-8 boundary. */
enum status error_set(struct error *error, enum status code, const char *format, ...)
    BASE_PRINTF(3, 4);

/* STATUS_MEMORY with the size that was asked for. */
enum status error_memory(struct error *error, size_t size_bytes);

/* ---- Overflow-checked sizes ------------------------------------------------------------------ */

/* *out = a * b (a + b); false and *out untouched when it does not fit. */
bool size_mul(size_t a, size_t b, size_t *out);
bool size_add(size_t a, size_t b, size_t *out);

/* ---- Arena: many small allocations with one end ---------------------------------------------- */

struct arena;

/* NULL when memory is out. limit_bytes bounds the sum of what is handed out (0: no limit). */
struct arena *arena_open(size_t limit_bytes);
void arena_close(struct arena *arena);

/* Zeroed, aligned to 16 bytes, valid until arena_close. NULL when memory or the limit is out. */
void *arena_alloc(struct arena *arena, size_t size_bytes);

/* As arena_alloc for count elements, overflow-checked. */
void *arena_array(struct arena *arena, size_t count, size_t element_bytes);

/* A copy of data[size] with a terminating zero byte. */
char *arena_copy(struct arena *arena, const void *data, size_t size);

/* ---- Buffer: bytes that grow ----------------------------------------------------------------- */

/* {0} is an empty buffer. After each append data[size] is a zero byte, so text is a C string. An
 * append that finds no memory returns false, changes nothing and sets failed, so that a writer may
 * check once at the end. */
struct buffer {
    char *data;
    size_t size;
    size_t capacity;
    bool failed;
};

bool buffer_reserve(struct buffer *buffer, size_t extra_bytes);
bool buffer_append(struct buffer *buffer, const void *data, size_t size);
bool buffer_append_text(struct buffer *buffer, const char *text);
bool buffer_printf(struct buffer *buffer, const char *format, ...) BASE_PRINTF(2, 3);
void buffer_clear(struct buffer *buffer); /* keeps the memory */
void buffer_free(struct buffer *buffer);

/* ---- Text views and UTF-8 -------------------------------------------------------------------- */

/* Borrowed bytes, not zero-terminated. */
struct view {
    const char *data;
    size_t size;
};

bool view_equal(struct view a, struct view b);
struct view view_of(const char *text); /* of a C string, without its zero */
/* Where word begins in text, from `from` on; text.size where it does not. */
size_t view_find(struct view text, size_t from, struct view word);
bool view_contains(struct view text, const char *word);

/* Reads one code point of data[size], size > 0; returns the bytes it takes (1 to 4). Where the
 * bytes are not valid UTF-8 (overlong, surrogate, cut off) returns 0 and leaves *code_point alone.
 */
size_t utf8_decode(const char *data, size_t size, uint32_t *code_point);

/* Writes code_point (valid) as 1 to 4 bytes; returns how many. */
size_t utf8_encode(uint32_t code_point, char out[4]);

/* Bytes of data[size] that are whole characters or can never become one: what may be printed now.
 * The rest (at most 3) is the beginning of a character whose other bytes may still come. */
size_t utf8_complete(const char *data, size_t size);

bool utf8_valid(const char *data, size_t size);

/* Code points of valid UTF-8, and where the last of them begins; size > 0 for the latter. */
size_t utf8_count(const char *data, size_t size);
size_t utf8_last(const char *data, size_t size);

/* "12.3 GiB" into text. */
const char *size_text(char text[32], double bytes);

/* ---- Cursor: bounded little-endian reading --------------------------------------------------- */

/* Reads never pass end. The first read that would sets failed; it and all later ones return zeros.
 */
struct cursor {
    const uint8_t *data;
    size_t size;
    size_t offset;
    bool failed;
};

struct cursor cursor_over(const void *data, size_t size);
uint8_t cursor_u8(struct cursor *cursor);
uint16_t cursor_u16(struct cursor *cursor);
uint32_t cursor_u32(struct cursor *cursor);
uint64_t cursor_u64(struct cursor *cursor);
/* Borrowed from the data; NULL after failure. */
const void *cursor_bytes(struct cursor *cursor, size_t size);
size_t cursor_left(const struct cursor *cursor);

/* ---- YAML: a file of settings ---------------------------------------------------------------- */

enum yaml_kind { YAML_TEXT, YAML_LIST, YAML_MAP };

struct yaml_node {
    enum yaml_kind kind;
    struct yaml_node *key;          /* of an entry of a map, a text */
    const char *text;               /* of a text */
    bool plain;                     /* without quotes */
    struct yaml_node *first, *next; /* the entries of a list or map; the next one beside it */
    size_t line, column;            /* from 1 */
};

/* Reads one document of at most 1 MiB into arena; *out is NULL where it is empty. Anchors, aliases
 * and tags are refused. Errors begin with "NAME:LINE:COLUMN: ". */
enum status yaml_read(struct yaml_node **out, struct arena *arena, struct view text,
                      const char *name, struct error *error);

/* ---- Files ----------------------------------------------------------------------------------- */

/* A file mapped read-only. data is NULL for an empty file. */
struct file_map {
    const uint8_t *data;
    size_t size;
};

enum status file_map_open(struct file_map *map, const char *path, struct error *error);
void file_map_close(struct file_map *map); /* {0} allowed */

/* Waits until a part of a mapping is in memory. */
void file_map_bring(const uint8_t *data, size_t size);
/* The whole pages of a part leave this process's memory; a look at them brings them again. */
void file_map_release(const uint8_t *data, size_t size);

/* Reads a whole file, or standard input for "-", of at most limit_bytes. out grows. */
enum status file_read(const char *path, size_t limit_bytes, struct buffer *out,
                      struct error *error);

/* A file that appears under its path only when it is whole: written beside it as PATH.tmp-PID, then
 * synced and renamed. What exists and is no regular file (a device, a pipe) is written directly.
 * file_commit and file_discard end it; discard accepts NULL. */
struct file_writer;
enum status file_create(struct file_writer **out, const char *path, struct error *error);
enum status file_write(struct file_writer *writer, const void *data, size_t size,
                       struct error *error);
uint64_t file_written(const struct file_writer *writer);                  /* bytes so far */
enum status file_commit(struct file_writer *writer, struct error *error); /* frees it, always */
void file_discard(struct file_writer *writer);

/* The path of a folder in the directory where consort keeps this user's models, keys and records:
 * CONSORT_HOME, else ~/.local/share/consort (macOS: ~/Library/Application Support/consort). It is
 * made, for its owner alone, where it is missing. folder "" is the directory itself. out is
 * replaced. */
enum status home_directory(const char *folder, struct buffer *out, struct error *error);

enum disk_kind { DISK_LOCAL, DISK_NETWORK, DISK_USB };

/* The disk that holds a folder; free_bytes are those that this user may take. */
struct disk {
    enum disk_kind kind;
    uint64_t free_bytes;
};

enum status disk_query(const char *path, struct disk *out, struct error *error);

/* True where all of it was written; else errno says why. */
bool file_write_all(int fd, const void *data, size_t size);

/* When a file was last written, in nanoseconds since 1970. */
struct stat;
int64_t file_modified_ns(const struct stat *facts);

/* A copy that shares its bytes until one is written to. False where the file system knows none. */
bool file_clone(const char *from, const char *to);

/* Locks a file, which is made where it is missing, against other processes and other calls; the
 * lock ends with file_unlock or the process. STATUS_BUSY where it is taken and wait is false. Who
 * holds a lock may remove its file. */
enum status file_lock(int *out, const char *path, bool wait, struct error *error);
void file_unlock(int lock); /* negative: none */

/* ---- Database: one SQLite file --------------------------------------------------------------- */

struct sqlite3;
struct sqlite3_stmt;

/* Opens the file, or makes one that only its owner may read. migrations[i] is the SQL that leads
 * tables from version i to i + 1; what is missing runs, each step whole or not at all. A file of a
 * newer version is refused. Other processes may have it open too (WAL); who finds it locked waits
 * five seconds, then fails with STATUS_BUSY. */
enum status database_open(struct sqlite3 **out, const char *path, const char *const *migrations,
                          size_t n_migrations, struct error *error);
void database_close(struct sqlite3 *database); /* NULL allowed */
/* Whether the file it opened is no longer the one of that name. */
bool database_moved(struct sqlite3 *database);
/* What SQLite refused last, as a sentence. */
enum status database_fail(struct sqlite3 *database, struct error *error);

/* Runs one statement. types has a letter for each of its parameters, whose values follow: i an
 * int64_t, t a const char * (may be NULL), b a const struct view * of bytes. */
enum status database_run(struct sqlite3 *database, struct error *error, const char *sql,
                         const char *types, ...);
/* row(context, statement) for each row of the result; false ends it. */
typedef bool database_row(void *context, struct sqlite3_stmt *row);
enum status database_query(struct sqlite3 *database, database_row *row, void *context,
                           struct error *error, const char *sql, const char *types, ...);
/* A column of a row as text, "" for none; lives as long as the row. */
const char *database_text(struct sqlite3_stmt *row, int column);
/* The first number of the first row, or 0. */
enum status database_number(struct sqlite3 *database, const char *sql, int64_t *out,
                            struct error *error);
/* A transaction. database_end keeps what was done where status is OK, else undoes it, and gives
 * what came of it all. */
enum status database_begin(struct sqlite3 *database, struct error *error);
enum status database_end(struct sqlite3 *database, enum status status, struct error *error);

/* ---- Randomness, clock, machine -------------------------------------------------------------- */

/* Counter-based (Philox 4x32-10; Salmon et al., SC 2011): the same (seed, position, draw) gives the
 * same number on every machine, in any order. */
uint64_t rng_u64(uint64_t seed, uint64_t position, uint32_t draw);
double rng_uniform(uint64_t seed, uint64_t position, uint32_t draw); /* [0, 1) */
uint64_t rng_entropy(void); /* from the operating system, for a seed nobody asked for */

uint64_t clock_now_ns(void); /* monotonic */

/* An allowance of so much a minute: full at first, refilled at an even rate, never more than full.
 * Who may take more than there is makes it negative. */
struct bucket {
    double level;
    uint64_t filled_ns;
    bool begun; /* before, it is full */
};

/* Adds what came since it was filled last. */
void bucket_fill(struct bucket *bucket, double per_minute, uint64_t now_ns);
/* Until it holds wanted. */
double bucket_wait_s(const struct bucket *bucket, double per_minute, double wanted);

struct machine {
    unsigned physical_cores;    /* performance cores on Apple Silicon; what this process may use */
    uint64_t processors;        /* the same for processes that may use the same processors */
    uint64_t memory_bytes;      /* installed, or the control group's limit */
    uint64_t memory_free_bytes; /* can be taken now without swapping; caches count as free */
    uint64_t memory_own_bytes;  /* of this process, without what it has mapped of files */
};

void machine_query(struct machine *out);

/* What models may take of so much memory, where nobody said: all but an eighth for the rest, of 2
 * to 8 GiB, and at most a quarter. */
uint64_t machine_usable_bytes(uint64_t memory_bytes);

/* Keeps the machine from falling asleep until wake_lock_close, or the end of this process. NULL
 * where it cannot: without systemd-inhibit (Linux), or refused. */
struct wake_lock;
struct wake_lock *wake_lock_open(const char *reason);
void wake_lock_close(struct wake_lock *lock); /* NULL allowed */

/* Groups of instructions that both the CPU and the system allow. */
enum cpu_feature {
    CPU_AVX2 = 1,        /* with FMA and F16C */
    CPU_AVX512 = 2,      /* F, BW, VL, DQ, VNNI */
    CPU_ARM_DOTPROD = 4, /* ARMv8.2 dot products of bytes */
    CPU_AVX512_BF16 = 8,
    CPU_AMX_BF16 = 16, /* tiles of bf16 */
};

/* Bits of enum cpu_feature. On Linux AMX must be asked for: the first call does so for all threads
 * that begin after it. */
unsigned machine_cpu_features(void);

/* Zeroed pages straight from the system, touched (and so counted) only when first written.
 * NULL when refused. pages_free takes the same size. */
void *pages_alloc(size_t size_bytes);
void pages_free(void *pages, size_t size_bytes);

/* pthread_create for a thread that takes no signals, from its very beginning: they are for the one
 * that waits for them, and wake it only there. False where no thread can be started. */
bool thread_start(pthread_t *thread, void *(*run)(void *), void *context);

/* ---- Compute pool ---------------------------------------------------------------------------- */

/* n_threads threads, the caller's among them. Idle threads spin briefly, then park. */
struct pool;

enum status pool_open(struct pool **out, unsigned n_threads, struct error *error);
void pool_close(struct pool *pool);
unsigned pool_threads(const struct pool *pool);

/* Calls fn(context, thread, begin, end) for disjoint ranges of whole chunks that cover
 * [0, n_items); a chunk has `chunk` items, the last may have fewer. Each thread begins with a share
 * of its own; who is done takes from the others', so a slow core does less. thread < pool_threads
 * names scratch memory. Returns when all are done. One caller at a time. */
typedef void pool_fn(void *context, unsigned thread, size_t begin, size_t end);
void pool_run(struct pool *pool, pool_fn *fn, void *context, size_t n_items, size_t chunk);

/* Jobs that have begun so far. Any thread: it shows whether something is computed. */
uint64_t pool_jobs(struct pool *pool);

/* Where a thread's share of a job of n_chunks begins. */
size_t pool_first_chunk(const struct pool *pool, unsigned thread, size_t n_chunks);

/* Where several take the same pool, whoever is about to call pool_run has the turn first, for as
 * long as its jobs belong together; the others sleep. First come, first served. */
void pool_take_turn(struct pool *pool);
void pool_end_turn(struct pool *pool);

/* A hint, which replaces the thread's one before: it will read data[size_bytes]. While it waits, it
 * brings them to its caches; data is never dereferenced. Same caller as pool_run. */
void pool_expect(struct pool *pool, unsigned thread, const void *data, size_t size_bytes);

#endif
