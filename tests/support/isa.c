/* Ends with 0 where this machine can run the kernel set that CONSORT_ISA names. */
#include "quant/quant.h"

#include <stdio.h>

int main(void)
{
    struct error error;
    if (quant_init(&error) != STATUS_OK) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    puts(quant_isa());
    return 0;
}
