/* The first byte chooses: a fixed vocabulary of some kind, the rest being text; or a vocabulary
 * made from the input. */
#include "../support/tokenizer_vocabularies.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition)
{
    if (!condition)
        abort();
}

/* Encodes, checks that ids are in range, and decodes; true where the pieces gave text back. */
static bool round_trip(const struct tokenizer *t, struct view text, unsigned flags)
{
    struct token_list list = {0};
    struct buffer pieces = {0}, streamed = {0};
    struct error error;
    struct detokenizer d = {.tokenizer = t, .with_special = true, .strip_space = true};
    require(tokenizer_encode(t, text, flags, &list, &error) == STATUS_OK);
    for (size_t i = 0; i < list.count; i++) {
        require(list.ids[i] >= 0 && (size_t)list.ids[i] < tokenizer_count(t));
        tokenizer_piece(t, list.ids[i], true, &pieces);
        detokenizer_feed(&d, list.ids[i], &streamed);
        require(streamed.size == 0 || utf8_valid(streamed.data, streamed.size));
    }
    detokenizer_finish(&d, &streamed);
    require(streamed.size == 0 || utf8_valid(streamed.data, streamed.size));
    bool equal = view_equal((struct view){pieces.data, pieces.size}, text);
    buffer_free(&pieces);
    buffer_free(&streamed);
    token_list_free(&list);
    return equal;
}

static struct tokenizer *fixed[16];

static const char *const pres[] = {"gpt-2",  "llama-bpe", "qwen35",  "deepseek-llm", "deepseek-v3",
                                   "falcon", "gpt-4o",    "kimi-k2", "superbpe",     "chameleon"};

static void open_fixed(void)
{
    struct error error;
    static struct small_vocabulary all[ARRAY_COUNT(fixed)];
    for (size_t i = 0; i < ARRAY_COUNT(fixed); i++) {
        struct small_vocabulary *v = &all[i];
        if (i < ARRAY_COUNT(pres))
            small_bytes(v, pres[i]);
        else if (i % 3 == 0)
            small_unigram(v);
        else if (i % 3 == 1)
            small_spm(v);
        else
            small_wordpiece(v, i == 11);
        require(tokenizer_open(&fixed[i], &v->config, &error) == STATUS_OK);
    }
}

/* Tokens, types, scores, merges and ids taken from the input as they come. */
static void hostile(const uint8_t *data, size_t size)
{
    static const char *const models[] = {"gpt2", "llama", "t5", "bert"};
    struct small_vocabulary v;
    struct cursor cursor = cursor_over(data, size);
    small_begin(&v, models[cursor_u8(&cursor) % 4], pres[cursor_u8(&cursor) % ARRAY_COUNT(pres)]);
    int32_t *ids[] = {&v.config.bos, &v.config.eos, &v.config.unknown, &v.config.mask};
    for (size_t i = 0; i < ARRAY_COUNT(ids); i++)
        *ids[i] = (int8_t)cursor_u8(&cursor);
    size_t n_tokens = cursor_u8(&cursor), n_merges = cursor_u8(&cursor) % ARRAY_COUNT(v.merges);
    for (size_t i = 0; i < n_tokens && !cursor.failed; i++) {
        uint32_t score = cursor_u8(&cursor) * 0x01010101u;
        uint8_t head = cursor_u8(&cursor);
        const void *text = cursor_bytes(&cursor, head >> 4);
        if (text == NULL)
            break;
        v.tokens[i] = (struct view){text, head >> 4};
        v.types[i] = head & 7;
        memcpy(&v.scores[i], &score, sizeof score);
        v.config.n_tokens = i + 1;
    }
    for (size_t i = 0; i < n_merges; i++) {
        uint8_t length = cursor_u8(&cursor) % 16;
        const void *text = cursor_bytes(&cursor, length);
        if (text == NULL)
            break;
        v.merges[i] = (struct view){text, length};
        v.config.n_merges = i + 1;
    }
    if (cursor_u8(&cursor) & 1)
        v.config.charsmap = (struct view){(const char *)data, size};
    size_t left = cursor_left(&cursor);
    struct view text = {cursor.failed ? (const char *)data : cursor_bytes(&cursor, left),
                        cursor.failed ? size : left};
    struct tokenizer *t;
    struct error error;
    if (tokenizer_open(&t, &v.config, &error) != STATUS_OK)
        return;
    round_trip(t, text, TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL);
    tokenizer_close(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (fixed[0] == NULL)
        open_fixed();
    if (size == 0)
        return 0;
    uint8_t choice = data[0];
    if (choice & 0x80) {
        hostile(data + 1, size - 1);
        return 0;
    }
    size_t which = choice % ARRAY_COUNT(fixed);
    struct view text = {(const char *)data + 1, size - 1};
    bool equal = round_trip(fixed[which], text, choice & 0x40 ? TOKENIZER_PARSE_SPECIAL : 0);
    /* A byte-level vocabulary loses nothing. */
    require(equal || which >= ARRAY_COUNT(pres) || !utf8_valid(text.data, text.size));
    return 0;
}
