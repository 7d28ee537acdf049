/* What names stand for, and Modelfiles. */
#include "store/store.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct view text = {(const char *)data, size};
    struct store_model *model;
    struct buffer out = {0};
    struct error error;
    const char *from = NULL;
    if (store_manifest_read(&model, text, &error) == STATUS_OK)
        store_manifest_write(model, &out, &error);
    store_model_free(model);
    buffer_free(&out);
    model = store_model_new();
    if (model != NULL)
        store_modelfile_read(model, text, &from, &error);
    store_model_free(model);
    return 0;
}
