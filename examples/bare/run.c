/* Runs an integer-only network once: run INPUT... OUTPUT..., files of raw numbers as model.h lists them.

   cc -O2 -I OUT/bare run.c OUT/bare/model.c OUT/bare/weights.S OUT/bare/kernels.o -o run   (from within OUT/bare, or
   with -Wa,-IOUT/bare, so that the assembler finds weights.bin). What is linked is the kernels, the plan and memcpy. */
#include "model.h"

#include <stdio.h>

static const size_t input_bytes[] = {
    QD_INPUT_0_BYTES,
#if QD_INPUTS > 1
    QD_INPUT_1_BYTES,
#endif
#if QD_INPUTS > 2
    QD_INPUT_2_BYTES,
#endif
};

static _Alignas(64) unsigned char input[QD_INPUTS][QD_INPUT_0_BYTES];
static _Alignas(64) unsigned char output[QD_OUTPUT_0_BYTES];

int main(int argc, char **argv) {
    const void *inputs[QD_INPUTS];
    void *outputs[] = {output};
    if (QD_OUTPUTS != 1 || argc != QD_INPUTS + 2) return fprintf(stderr, "usage: run INPUT... OUTPUT\n"), 2;
    for (int i = 0; i < QD_INPUTS; ++i) {
        FILE *file = fopen(argv[1 + i], "rb");
        if (!file || input_bytes[i] > sizeof *input || fread(input[i], 1, input_bytes[i], file) != input_bytes[i])
            return fprintf(stderr, "%s does not hold %zu bytes\n", argv[1 + i], input_bytes[i]), 2;
        fclose(file);
        inputs[i] = input[i];
    }
    int failed = qd_run(inputs, outputs);
    if (failed) return fprintf(stderr, "step %d failed\n", failed), 1;
    FILE *file = fopen(argv[QD_INPUTS + 1], "wb");
    if (!file || fwrite(output, 1, sizeof output, file) != sizeof output || fclose(file)) return 1;
    return 0;
}
