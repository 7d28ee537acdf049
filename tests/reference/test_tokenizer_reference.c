/* The reference vocabularies: texts in NAME.inp (one after another, a separator line between), the
 * ids of each on one line of NAME.out. */
#include "../support/reference.h"
#include "engine/engine.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEPARATOR "\n__ggml_vocab_test__\n"

/* The text up to the next separator; moves *at behind it. */
static struct view next_text(const struct buffer *texts, size_t *at)
{
    const char *begin = texts->data + *at;
    const char *end = strstr(begin, SEPARATOR);
    size_t size = end != NULL ? (size_t)(end - begin) : texts->size - *at;
    *at += size + (end != NULL ? strlen(SEPARATOR) : 1);
    return (struct view){begin, size};
}

static void check_ids(const struct tokenizer *tokenizer, struct view text, const char *line)
{
    struct token_list list = {0};
    struct buffer found = {0};
    struct error error;
    assert_int_equal(tokenizer_encode(tokenizer, text, 0, &list, &error), STATUS_OK);
    for (size_t i = 0; i < list.count; i++)
        buffer_printf(&found, "%s%d", i > 0 ? " " : "", (int)list.ids[i]);
    buffer_reserve(&found, 1);
    if (strcmp(found.size > 0 ? found.data : "", line) != 0)
        print_error("text: '%.*s'\n", (int)text.size, text.data);
    assert_string_equal(found.size > 0 ? found.data : "", line);
    buffer_free(&found);
    token_list_free(&list);
}

/* Decoding gives the text back, except for WordPiece, which drops case and white space. */
static void check_decoded(const struct tokenizer *tokenizer, struct view text)
{
    if (view_equal(tokenizer_config(tokenizer)->model, view_of("bert")))
        return;
    struct token_list list = {0};
    struct buffer pieces = {0}, streamed = {0};
    struct error error;
    assert_int_equal(tokenizer_encode(tokenizer, text, 0, &list, &error), STATUS_OK);
    bool prefix = tokenizer_config(tokenizer)->add_space_prefix == TOKENIZER_YES;
    struct detokenizer detokenizer = {.tokenizer = tokenizer, .strip_space = true};
    for (size_t i = 0; i < list.count; i++) {
        tokenizer_piece(tokenizer, list.ids[i], false, &pieces);
        detokenizer_feed(&detokenizer, list.ids[i], &streamed);
        assert_true(utf8_valid(streamed.size > 0 ? streamed.data : "", streamed.size));
    }
    detokenizer_finish(&detokenizer, &streamed);
    assert_int_equal(streamed.size, text.size);
    assert_memory_equal(streamed.data != NULL ? streamed.data : "", text.data, text.size);
    assert_int_equal(pieces.size, text.size + (prefix && text.size > 0));
    buffer_free(&pieces);
    buffer_free(&streamed);
    token_list_free(&list);
}

/* Ids are written with a space before each. */
static void trim(char *line)
{
    size_t size = strlen(line), skip = strspn(line, " ");
    while (size > skip && (line[size - 1] == ' ' || line[size - 1] == '\r'))
        line[--size] = '\0';
    memmove(line, line + skip, size - skip + 1);
}

static void check_vocabulary(void **state)
{
    const char *name = *state;
    char path[REFERENCE_PATH_BYTES];
    struct buffer texts = {0}, ids = {0};
    struct weights *weights;
    struct tokenizer *tokenizer;
    struct error error = {0};
    reference_path(path, "tokenizer/%s.gguf", name);
    assert_int_equal(weights_open(&weights, path, &error), STATUS_OK);
    reference_path(path, "tokenizer/%s.inp", name);
    assert_true(reference_read(path, &texts));
    reference_path(path, "tokenizer/%s.out", name);
    assert_true(reference_read(path, &ids));
    struct arena *arena = arena_open(0);
    enum status status = engine_tokenizer_open(&tokenizer, arena, weights, &error);
    if (status != STATUS_OK)
        print_error("%s\n", error.text);
    assert_int_equal(status, STATUS_OK);
    char *line = ids.data;
    size_t count = 0;
    for (size_t at = 0; at <= texts.size; count++) {
        struct view text = next_text(&texts, &at);
        size_t length = strcspn(line, "\n");
        char *end = line + length + (line[length] == '\n');
        line[length] = '\0';
        trim(line);
        check_ids(tokenizer, text, line);
        check_decoded(tokenizer, text);
        line = end;
    }
    assert_true(count > 10);
    assert_int_equal(line - ids.data, ids.size);
    tokenizer_close(tokenizer);
    arena_close(arena);
    weights_close(weights);
    buffer_free(&texts);
    buffer_free(&ids);
}

/* One test for each vocabulary in the folder. */
static size_t find_vocabularies(const char *folder, struct CMUnitTest *tests, size_t most)
{
    size_t count = 0;
    DIR *directory = opendir(folder);
    struct dirent *entry;
    while (directory != NULL && (entry = readdir(directory)) != NULL && count < most) {
        size_t size = strlen(entry->d_name);
        if (size <= 5 || strcmp(entry->d_name + size - 5, ".gguf") != 0)
            continue;
        char *name = strndup(entry->d_name, size - 5), *title = malloc(size + 32);
        sprintf(title, "tokenizer_reference_%s", name);
        tests[count++] = (struct CMUnitTest){title, check_vocabulary, NULL, NULL, name};
    }
    if (directory != NULL)
        closedir(directory);
    return count;
}

int main(void)
{
    struct CMUnitTest tests[64];
    char folder[REFERENCE_PATH_BYTES];
    reference_path(folder, "tokenizer");
    size_t count = find_vocabularies(folder, tests, ARRAY_COUNT(tests));
    if (count == 0) {
        printf("1..1\nok 1 - tokenizer_reference # SKIP no vocabularies in %s\n", folder);
        return 0;
    }
    int failed = _cmocka_run_group_tests("tokenizer_reference", tests, count, NULL, NULL);
    for (size_t i = 0; i < count; i++) {
        free(tests[i].initial_state);
        free((char *)tests[i].name);
    }
    return failed;
}
