/* Which texts a step continues, how much of which prompt it computes, and where their pages come
 * from. All of it on the engine's thread. */
#include "engine/scheduler_internal.h"

#include <stdlib.h>
#include <string.h>

#define PAGE MODEL_KV_PAGE_TOKENS
#define DEFAULT_STEP_MS 200
#define STEP_DISK_BYTES ((size_t)32 << 20) /* of pages that come from disk before a step */

/* ---- Opening --------------------------------------------------------------------------------- */

/* What the numbers in pages of the KV cache depend on. The first number is that of the arithmetic:
 * it changes with what changes a model's numbers from one version of consort to the next. */
static enum status use_disk(struct batch *batch, const struct scheduler_options *options,
                            struct error *error)
{
    struct buffer identity = {0};
    buffer_printf(&identity, "1 " CONSORT_VERSION " %s, ", quant_isa());
    model_page_text(batch->engine->model, &identity);
    if (options->file_digest != NULL)
        buffer_printf(&identity, ", sha256 %s", options->file_digest);
    else
        weights_stamp(batch->engine->weights, &identity);
    if (!identity.failed)
        prefix_use_disk(batch->cache, options->kv_disk,
                        (struct view){identity.data, identity.size});
    enum status status = identity.failed ? error_memory(error, identity.size) : STATUS_OK;
    buffer_free(&identity);
    return status;
}

enum status batch_open(struct batch *batch, struct engine *engine,
                       const struct scheduler_options *options, struct error *error)
{
    size_t limit = model_batch_limit(engine->model), asked = options->step_tokens;
    uint32_t max = options->max_sequences > 0 ? options->max_sequences : SCHEDULER_SEQUENCES;
    *batch = (struct batch){.engine = engine, .step_tokens = asked > 0 ? MIN(asked, limit) : limit};
    batch->max_streams = (uint32_t)MIN(max, batch->step_tokens);
    size_t n = batch->max_streams, n_vocab = model_description(engine->model)->n_vocab;
    batch->n_stages = model_n_stages(engine->model);
    batch->max_flights = MIN(model_steps_most(engine->model), batch->n_stages + 1);
    batch->step_rows = MAX(n, (size_t)SCHEDULER_SEQUENCES);
    batch->max_rows = batch->max_flights > 1 ? 2 * (batch->step_rows + n) : batch->step_rows;
    batch->running = calloc(n, sizeof *batch->running);
    batch->paused = calloc(n, sizeof *batch->paused);
    batch->segments = calloc(n, sizeof *batch->segments);
    batch->logits = calloc(batch->max_rows, n_vocab * sizeof *batch->logits);
    batch->cost.max_texts = batch->max_streams;
    batch->cost.texts_ns = calloc(n + 1, sizeof *batch->cost.texts_ns);
    batch->speculation = (struct speculation){.by_ngram = true,
                                              .max = options->no_drafts ? 0 : SPECULATE_MAX,
                                              .pay = speculate_pay_begin()};
    batch->cost.limit_ns = 1e6 * (options->step_ms > 0 ? options->step_ms : DEFAULT_STEP_MS);
    if (batch->running == NULL || batch->paused == NULL || batch->segments == NULL ||
        batch->logits == NULL || batch->cost.texts_ns == NULL)
        return error_memory(error, batch->max_rows * n_vocab * sizeof *batch->logits);
    if (options->no_prefix_cache)
        return STATUS_OK;
    enum status status = prefix_open(&batch->cache, engine->model, error);
    if (status == STATUS_OK && options->kv_disk != NULL)
        status = use_disk(batch, options, error);
    return status;
}

void batch_close(struct batch *batch)
{
    prefix_close(batch->cache);
    speculation_close(&batch->speculation);
    free(batch->running);
    free(batch->paused);
    free(batch->segments);
    free(batch->logits);
    free(batch->cost.texts_ns);
}

/* ---- Joining and leaving --------------------------------------------------------------------- */

static uint32_t pages_of(size_t n_tokens)
{
    return (uint32_t)((n_tokens + PAGE - 1) / PAGE);
}

/* Whether the KV cache has room for a text, beside what those that run have taken or will soon
 * take. Alone, every text has room. */
static bool has_pages(const struct batch *batch, const struct stream *stream)
{
    if (batch->n_running == 0)
        return true;
    uint64_t needed = pages_of(stream->text.count) + 1;
    for (uint32_t i = 0; i < batch->n_running; i++) {
        const struct stream *other = batch->running[i];
        needed += pages_of(other->text.count) + 1 - pages_of(sequence_length(other->sequence));
    }
    return needed <=
           (uint64_t)model_pages_free(batch->engine->model) + prefix_spare_pages(batch->cache);
}

bool batch_has_room(const struct batch *batch, const struct stream *stream)
{
    return stream->over || (batch->n_paused == 0 && batch->n_running < batch->max_streams &&
                            has_pages(batch, stream));
}

static void end_stream(struct batch *batch, struct stream *stream)
{
    stream->next = batch->ended;
    batch->ended = stream;
    if (stream->failed)
        batch->counts.n_failed++;
    else if (stream->reason == FINISH_CANCELLED)
        batch->counts.n_cancelled++;
    else
        batch->counts.n_finished++;
}

/* Whether all logits of the prompt are wanted, so that nothing of it can be taken over. */
static bool scores_prompt(const struct stream *stream)
{
    return stream->request->score_prompt && !stream->started;
}

/* Gives a stream its sequence, and a place by its age. */
static void run_stream(struct batch *batch, struct stream *stream)
{
    struct error error;
    if (sequence_open(&stream->sequence, batch->engine->model, &error) != STATUS_OK) {
        stream_fail(stream, &error);
        end_stream(batch, stream);
        return;
    }
    stream->path.lost = scores_prompt(stream);
    uint32_t place = batch->n_running++;
    for (; place > 0 && batch->running[place - 1]->age > stream->age; place--)
        batch->running[place] = batch->running[place - 1];
    batch->running[place] = stream;
}

void batch_add(struct batch *batch, struct stream *stream)
{
    stream->age = ++batch->last_age;
    stream->begun_ns = clock_now_ns();
    stream->usage.queue_ns = stream->begun_ns - stream->accepted_ns;
    batch->counts.prompt_tokens += stream->usage.n_prompt;
    if (stream->over)
        end_stream(batch, stream);
    else
        run_stream(batch, stream);
}

/* Keeps what was computed of a text for later ones, and lets go of the sequence. */
static void release_sequence(struct batch *batch, struct stream *stream)
{
    sequence_truncate(stream->sequence, (uint32_t)stream->text.count); /* a draft under way */
    prefix_keep(batch->cache, &stream->path, stream->sequence, stream->text.ids, true);
    sequence_close(stream->sequence);
    stream->sequence = NULL;
    stream->path = (struct prefix_path){0};
}

/* The youngest one waits until there are pages for it. */
static void pause_youngest(struct batch *batch)
{
    struct stream *stream = batch->running[--batch->n_running];
    release_sequence(batch, stream);
    if (!stream->started)
        stream->usage.n_cached = 0;
    uint32_t place = batch->n_paused++;
    for (; place > 0 && batch->paused[place - 1]->age > stream->age; place--)
        batch->paused[place] = batch->paused[place - 1];
    batch->paused[place] = stream;
    batch->counts.n_pauses++;
}

static void resume(struct batch *batch)
{
    while (batch->n_paused > 0 && has_pages(batch, batch->paused[0])) {
        struct stream *stream = batch->paused[0];
        batch->n_paused--;
        memmove(batch->paused, batch->paused + 1, batch->n_paused * sizeof(struct stream *));
        run_stream(batch, stream);
    }
}

void batch_cancel(struct batch *batch, bool all)
{
    struct stream **lists[] = {batch->running, batch->paused};
    uint32_t *counts[] = {&batch->n_running, &batch->n_paused};
    for (size_t l = 0; l < ARRAY_COUNT(lists); l++) {
        uint32_t kept = 0;
        for (uint32_t i = 0; i < *counts[l]; i++) {
            struct stream *stream = lists[l][i];
            if (!all && !atomic_load(&stream->cancelled)) {
                lists[l][kept++] = stream;
                continue;
            }
            if (stream->sequence != NULL)
                release_sequence(batch, stream);
            stream_finish(stream, FINISH_CANCELLED);
            end_stream(batch, stream);
        }
        *counts[l] = kept;
    }
}

/* ---- Prompts that share their beginning ------------------------------------------------------ */

static bool computes_prompt(const struct stream *stream)
{
    return !stream->started || stream_pending(stream) > 1;
}

/* Tokens from begin on in which two texts are the same, at most a page of them. */
static uint32_t same_tokens(const struct stream *a, const struct stream *b, size_t begin)
{
    size_t end = MIN(MIN(a->text.count, b->text.count), begin + PAGE), i = begin;
    while (i < end && a->text.ids[i] == b->text.ids[i])
        i++;
    return i > begin ? (uint32_t)(i - begin) : 0;
}

/* A page that still grows is not in the cache, but may be shared all the same. True where an older
 * stream computes now what this one needs next: waiting for it is cheaper. */
static bool follow_others(struct batch *batch, uint32_t index)
{
    struct stream *stream = batch->running[index];
    size_t begin = (size_t)stream->path.n_pages * PAGE;
    if (batch->cache == NULL || stream->path.lost || sequence_length(stream->sequence) != begin)
        return false;
    for (uint32_t i = 0; i < batch->n_running; i++) {
        const struct stream *other = batch->running[i];
        if (i == index || other->path.end != stream->path.end || other->path.lost ||
            other->path.n_pages != stream->path.n_pages)
            continue;
        uint32_t wanted =
            MIN(same_tokens(stream, other, begin), (uint32_t)(stream->text.count - 1 - begin));
        uint32_t there = (uint32_t)(sequence_length(other->sequence) - begin);
        if (i < index && computes_prompt(other) && there < wanted && wanted >= PREFIX_MIN_TOKENS)
            return true;
        uint32_t shared = MIN(wanted, there);
        if (shared < PREFIX_MIN_TOKENS)
            continue;
        sequence_adopt(stream->sequence, sequence_page(other->sequence, stream->path.n_pages),
                       shared);
        stream->usage.n_cached += stream->started ? 0 : shared;
        return false;
    }
    return false;
}

/* Takes over what is known of a prompt by now. */
static void extend(struct batch *batch, uint32_t index)
{
    struct stream *stream = batch->running[index];
    uint32_t adopted = prefix_extend(batch->cache, &stream->path, stream->sequence,
                                     stream->text.ids, stream->text.count - 1);
    stream->usage.n_cached += stream->started ? 0 : adopted;
    stream->waits = stream->path.more || follow_others(batch, index);
}

/* ---- Planning -------------------------------------------------------------------------------- */

/* Rows of logits for prompts that are scored, beside those of flights under way. */
static size_t rows_to_score(const struct batch *batch)
{
    size_t n = batch->step_rows;
    for (uint32_t i = 0; i < batch->n_running; i++)
        n -= batch->running[i]->flight > 0 ? batch->running[i]->n_scores : 0;
    return n;
}

/* Grants a prompt some of the tokens that are left; returns what is left then. */
static size_t grant(const struct batch *batch, struct stream *stream, size_t most, size_t left)
{
    size_t pending = stream_pending(stream) - stream->n_step, more = MIN(MIN(pending, most), left);
    if (more > 0 && more == left)
        more = model_even_share(pending, more);
    if (scores_prompt(stream)) /* a row of logits for each token */
        more = MIN(more, rows_to_score(batch) / batch->n_running - stream->n_step);
    stream->n_step += more;
    return left - more;
}

/* Texts of a step: of a pipeline, each stage has some at a time. */
static uint32_t texts_of_step(const struct batch *batch)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < batch->n_running; i++)
        n += batch->running[i]->flight > 0 || !computes_prompt(batch->running[i]);
    return (n + batch->n_stages - 1) / batch->n_stages;
}

/* Sets n_step of all: one token of each text, and of the prompts what there is room for. Half of it
 * goes to the prompt with the least left, so that short ones need not wait for long ones; the rest
 * to the oldest, so that long ones come to an end as well. */
static void plan(struct batch *batch)
{
    struct stream *shortest = NULL, *oldest = NULL;
    struct waiting_prompts prompts = {0};
    uint32_t n_texts = 0, most_texts = texts_of_step(batch);
    for (uint32_t i = 0; i < batch->n_running; i++) {
        struct stream *stream = batch->running[i];
        bool prompt = computes_prompt(stream);
        stream->n_step = !prompt && stream->flight == 0 && n_texts < most_texts;
        n_texts += stream->n_step > 0;
        if (!prompt || stream->flight > 0)
            continue;
        extend(batch, i);
        if (stream->waits)
            continue;
        prompts.count++;
        prompts.n_tokens += stream_pending(stream);
        prompts.n_whole += stream->text.count - stream->usage.n_cached;
        if (oldest == NULL)
            oldest = stream;
        if (shortest == NULL || stream_pending(stream) < stream_pending(shortest))
            shortest = stream;
    }
    if (oldest != NULL)
        prompts.depth =
            (double)MAX(sequence_length(oldest->sequence), sequence_length(shortest->sequence));
    size_t left = step_cost_allows(&batch->cost, n_texts, &prompts);
    left = MIN(left, batch->step_tokens - n_texts);
    if (shortest != NULL)
        left = grant(batch, shortest, (left + 1) / 2, left);
    for (uint32_t i = 0; i < batch->n_running; i++)
        if (computes_prompt(batch->running[i]) && batch->running[i]->flight == 0 &&
            !batch->running[i]->waits)
            left = grant(batch, batch->running[i], left, left);
}

static uint32_t pages_needed(const struct batch *batch)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < batch->n_running; i++)
        n += sequence_pages_needed(batch->running[i]->sequence, batch->running[i]->n_step);
    return n;
}

static void plan_nothing(struct batch *batch)
{
    for (uint32_t i = 0; i < batch->n_running; i++)
        batch->running[i]->n_step = 0;
}

/* Plans a step for which there are pages: first those are given up that nobody uses, then the
 * youngest stream pauses. */
static void plan_with_pages(struct batch *batch)
{
    plan(batch);
    for (;;) {
        uint32_t needed = pages_needed(batch);
        if (needed <= model_pages_free(batch->engine->model) ||
            prefix_make_room(batch->cache, needed))
            return;
        if (batch->n_flights > 0) { /* what lands may make room, and cannot pause */
            plan_nothing(batch);
            return;
        }
        if (batch->n_running == 1)
            break;
        pause_youngest(batch);
        plan(batch);
    }
    /* What is left of the cache is what this one text began with. It need not keep a copy. */
    const struct sequence *sequence = batch->running[0]->sequence;
    if (sequence_length(sequence) % PAGE != 0)
        prefix_forget(batch->cache, sequence_page(sequence, sequence_length(sequence) / PAGE));
}

/* ---- A step ---------------------------------------------------------------------------------- */

void batch_take_turn(struct batch *batch)
{
    struct pool *pool = model_pool(batch->engine->model);
    if (pool != NULL)
        pool_take_turn(pool);
}

void batch_end_turn(struct batch *batch)
{
    struct pool *pool = model_pool(batch->engine->model);
    if (pool != NULL)
        pool_end_turn(pool);
}

/* Streams of the flight that has landed. */
struct drawing {
    struct stream **streams;
    uint64_t flight;
};

static void draw_some(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct drawing *drawing = context;
    (void)thread;
    for (size_t i = begin; i < end; i++)
        if (drawing->streams[i]->flight == drawing->flight && drawing->streams[i]->n_rows > 0)
            stream_draw(drawing->streams[i], 0);
}

/* Draws for all that have logits, on the threads that have just computed them. */
static void draw(struct batch *batch, const struct flight *flight)
{
    struct pool *pool = model_pool(batch->engine->model);
    struct drawing drawing = {batch->running, flight->number};
    if (pool != NULL && batch->n_running > 1)
        pool_run(pool, draw_some, &drawing, batch->n_running, 1);
    else
        draw_some(&drawing, 0, 0, batch->n_running);
}

/* Rows of the logits for a flight: behind those of the last, or at the beginning, where the oldest
 * have landed. Of twice as many as can be under way there are always enough beside each other. */
static void place_rows(const struct batch *batch, struct flight *flight)
{
    if (batch->n_flights > 0) {
        const struct flight *last = &batch->flights[batch->n_flights - 1];
        flight->first_row = last->first_row + last->n_rows;
    }
    if (flight->first_row + flight->n_rows > batch->max_rows)
        flight->first_row = 0;
}

/* Fills the segments and says what the flight has. Returns how many there are. */
static size_t fill_segments(struct batch *batch, struct flight *flight)
{
    size_t n_segments = 0, n_vocab = model_description(batch->engine->model)->n_vocab;
    for (uint32_t i = 0; i < batch->n_running; i++) {
        struct stream *stream = batch->running[i];
        if (stream->flight > 0)
            continue;
        stream->n_rows = stream->n_step > 0 && stream->n_step == stream_pending(stream);
        stream->n_scores = scores_prompt(stream) ? stream->n_step - stream->n_rows : 0;
        flight->n_rows += stream->n_scores + stream->n_rows;
    }
    place_rows(batch, flight);
    float *logits = batch->logits + flight->first_row * n_vocab;
    for (uint32_t i = 0; i < batch->n_running; i++) {
        struct stream *stream = batch->running[i];
        if (stream->flight > 0)
            continue;
        stream->scores = logits;
        stream->first_score = sequence_length(stream->sequence) + 1;
        stream->logits = stream->scores + stream->n_scores * n_vocab;
        logits += (stream->n_scores + stream->n_rows) * n_vocab;
        if (stream->n_step == 0)
            continue;
        if (computes_prompt(stream)) {
            double n = (double)stream->n_step;
            flight->n_prompt += stream->n_step;
            flight->prompt_depths += n * ((double)sequence_length(stream->sequence) + n / 2);
        } else {
            flight->n_texts++;
        }
        batch->segments[n_segments++] =
            (struct step_segment){.sequence = stream->sequence,
                                  .tokens = stream->text.ids + sequence_length(stream->sequence),
                                  .n_tokens = stream->n_step,
                                  .n_logits = stream->n_scores + stream->n_rows};
    }
    return n_segments;
}

/* A text that is alone takes a draft along: computing a few rows more hardly takes longer. tokens
 * has room for them all. True where drafts are followed, also if there is none now. */
static bool add_draft(struct batch *batch, int32_t *tokens)
{
    struct stream *stream = batch->running[0];
    struct step_segment *segment = &batch->segments[0];
    size_t n_drafted, count = stream->text.count;
    size_t room = MIN(stream->limit - count - 1, batch->step_rows - 1);
    if (batch->speculation.max == 0 || batch->n_running != 1 || batch->n_flights > 0 ||
        computes_prompt(stream)) {
        batch->drafted_id = 0;
        return false;
    }
    if (batch->drafted_id != stream->id)
        speculation_begin(&batch->speculation);
    batch->drafted_id = stream->id;
    const int32_t *draft =
        speculation_propose(&batch->speculation, stream->text.ids, count, room, &n_drafted);
    uint32_t needed = sequence_pages_needed(stream->sequence, 1 + n_drafted);
    if (n_drafted == 0 || (needed > model_pages_free(batch->engine->model) &&
                           !prefix_make_room(batch->cache, needed)))
        return true;
    tokens[0] = stream->text.ids[count - 1];
    memcpy(tokens + 1, draft, n_drafted * sizeof *tokens);
    segment->tokens = tokens;
    segment->n_tokens = segment->n_logits = stream->n_rows = 1 + n_drafted;
    batch->counts.draft_tokens += n_drafted;
    return true;
}

/* Begins what was planned, in the batch's turn. */
static enum status begin_flight(struct batch *batch, struct error *error)
{
    int32_t tokens[1 + SPECULATE_MAX];
    struct flight flight = {.number = ++batch->last_flight};
    size_t n_segments = fill_segments(batch, &flight), n_rows = 0;
    float *logits =
        batch->logits + flight.first_row * model_description(batch->engine->model)->n_vocab;
    flight.drafts = add_draft(batch, tokens);
    flight.begin_ns = clock_now_ns();
    enum status status =
        model_step_begin(batch->engine->model, batch->segments, n_segments, logits, error);
    if (status != STATUS_OK)
        return status;
    for (uint32_t i = 0; i < batch->n_running; i++) {
        struct stream *stream = batch->running[i];
        if (stream->flight > 0)
            continue;
        stream->flight = stream->n_scores + stream->n_rows > 0 ? flight.number : 0;
        n_rows += stream->n_scores + stream->n_rows;
    }
    flight.n_rows = n_rows; /* with a draft's */
    batch->flights[batch->n_flights++] = flight;
    return STATUS_OK;
}

/* Awaits the oldest flight and draws, in the batch's turn. */
static enum status land_flight(struct batch *batch, const struct flight *flight,
                               struct error *error)
{
    enum status status = model_step_end(batch->engine->model, error);
    if (status != STATUS_OK)
        return status;
    uint64_t begin_ns = MAX(flight->begin_ns, batch->landed_ns);
    if (flight->drafts)
        speculation_computed(&batch->speculation, flight->n_rows,
                             (double)(clock_now_ns() - begin_ns));
    draw(batch, flight);
    batch->landed_ns = clock_now_ns();
    uint64_t ns = batch->landed_ns - begin_ns;
    /* Behind another one, it lands when it has gone through one more stage. */
    uint64_t whole_ns = begin_ns > flight->begin_ns ? ns * batch->n_stages : ns;
    if (!flight->drafts || flight->n_rows == 1)
        step_cost_learn(&batch->cost, flight->n_texts, flight->n_prompt, flight->prompt_depths,
                        whole_ns);
    batch->counts.steps++;
    batch->counts.step_ns += ns;
    return STATUS_OK;
}

static void start(struct batch *batch, struct stream *stream)
{
    stream_give_started(stream);
    batch->counts.cached_tokens += stream->usage.n_cached;
    batch->counts.prefix_hits += stream->usage.n_cached > 0;
}

/* Draws for as long as the draft was right, and cuts the rest of it off. The first token is drawn
 * already. True when the answer has ended. */
static bool advance(struct batch *batch, struct stream *stream)
{
    bool ended = false;
    if (stream->n_scores + stream->n_rows > 0 && scores_prompt(stream))
        stream_give_scores(stream);
    if (stream->n_rows > 0 && !stream->started)
        start(batch, stream);
    if (stream->started && stream->request->no_answer) {
        stream_finish(stream, FINISH_LENGTH);
        return true;
    }
    for (size_t row = 0; row < stream->n_rows && !ended; row++) {
        if (row > 0)
            stream_draw(stream, row);
        batch->counts.output_tokens += stream->drawn >= 0;
        batch->counts.draft_tokens_right += row > 0;
        ended = stream_advance(stream);
        bool followed = batch->drafted_id == stream->id && stream->drawn >= 0 &&
                        speculation_drawn(&batch->speculation, stream->drawn);
        if (!followed || atomic_load(&stream->cancelled))
            break;
    }
    if (stream->n_rows > 0)
        sequence_truncate(stream->sequence, (uint32_t)stream->text.count - 1);
    if (stream->n_step > 0 || stream->n_rows > 0)
        prefix_keep(batch->cache, &stream->path, stream->sequence, stream->text.ids, false);
    stream->flight = 0;
    stream->n_scores = stream->n_rows = stream->n_step = 0;
    return ended;
}

/* The model is of no use any more: nothing can go on. */
static void fail_all(struct batch *batch, const struct error *error)
{
    struct stream **lists[] = {batch->running, batch->paused};
    uint32_t *counts[] = {&batch->n_running, &batch->n_paused};
    for (size_t l = 0; l < ARRAY_COUNT(lists); l++) {
        for (uint32_t i = 0; i < *counts[l]; i++) {
            if (lists[l][i]->sequence != NULL)
                release_sequence(batch, lists[l][i]);
            stream_fail(lists[l][i], error);
            end_stream(batch, lists[l][i]);
        }
        *counts[l] = 0;
    }
}

static void fail(struct batch *batch, struct stream *stream, const struct error *error)
{
    stream_fail(stream, error);
    release_sequence(batch, stream);
    end_stream(batch, stream);
}

/* Ends all that what failed was computed for; of a pipeline that is never but for a lost rank. */
static void fail_planned(struct batch *batch, const struct error *error)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < batch->n_running; i++) {
        struct stream *stream = batch->running[i];
        if (batch->max_flights > 1 || stream->n_step > 0)
            fail(batch, stream, error);
        else
            batch->running[kept++] = stream;
    }
    batch->n_running = kept;
}

/* Goes on with the streams whose rows have landed, or with flight 0 with prompts that have none. */
static void advance_all(struct batch *batch, uint64_t flight)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < batch->n_running; i++) {
        struct stream *stream = batch->running[i];
        bool concerned =
            flight > 0 ? stream->flight == flight : stream->flight == 0 && stream->n_step > 0;
        if (!concerned || !advance(batch, stream)) {
            batch->running[kept++] = stream;
            continue;
        }
        release_sequence(batch, stream);
        end_stream(batch, stream);
    }
    batch->n_running = kept;
}

/* Of a pipeline, what is under way is as good as computed for all that begins later: prompts go on,
 * and others take over their pages. */
static void keep_begun(struct batch *batch)
{
    for (uint32_t i = 0; i < batch->n_running; i++) {
        struct stream *stream = batch->running[i];
        if (stream->n_step > 0 && sequence_length(stream->sequence) <= stream->text.count)
            prefix_keep(batch->cache, &stream->path, stream->sequence, stream->text.ids, false);
        stream->n_step = 0;
    }
}

static void begin_step(struct batch *batch)
{
    struct error error;
    size_t n = 0, page_bytes = model_page_bytes(batch->engine->model);
    prefix_grant(batch->cache, 1 + (uint32_t)(STEP_DISK_BYTES / MAX(page_bytes, (size_t)1)));
    plan_with_pages(batch);
    for (uint32_t i = 0; i < batch->n_running; i++)
        n += batch->running[i]->n_step;
    if (n == 0)
        return;
    batch_take_turn(batch);
    enum status status = begin_flight(batch, &error);
    batch_end_turn(batch);
    if (status == STATUS_LOST)
        fail_all(batch, &error);
    else if (status != STATUS_OK)
        fail_planned(batch, &error);
    else if (batch->max_flights > 1)
        keep_begun(batch);
}

static void land_step(struct batch *batch)
{
    struct error error;
    struct flight flight = batch->flights[0];
    batch_take_turn(batch);
    enum status status = land_flight(batch, &flight, &error);
    batch_end_turn(batch);
    batch->n_flights--;
    memmove(batch->flights, batch->flights + 1, batch->n_flights * sizeof *batch->flights);
    if (status == STATUS_LOST)
        fail_all(batch, &error);
    else if (status != STATUS_OK)
        fail_planned(batch, &error);
    if (status != STATUS_OK)
        return;
    advance_all(batch, flight.number);
    if (batch->max_flights == 1)
        advance_all(batch, 0);
}

void batch_land(struct batch *batch)
{
    while (batch->n_flights > 0)
        land_step(batch);
}

void batch_step(struct batch *batch)
{
    uint32_t n_before = batch->n_flights;
    resume(batch);
    if (batch->n_running == 0) {
        batch_land(batch);
        return;
    }
    if (batch->n_flights < batch->max_flights)
        begin_step(batch);
    if (batch->n_flights > 0 &&
        (batch->n_flights == batch->max_flights || batch->n_flights == n_before))
        land_step(batch);
}
