/* The bytes of a block, per format (internal to src/quant). Little-endian; d, dmin, m are F16 bits.
 *
 *   Q4_0   d            qs[16]: x = d (q - 8);      low nibbles are numbers 0..15, high ones 16..31
 *   Q4_1   d m          qs[16]: x = d q + m
 *   Q5_0   d qh[4]      qs[16]: x = d (q - 16);     bit j of qh is bit 4 of number j
 *   Q5_1   d m qh[4]    qs[16]: x = d q + m
 *   Q8_0   d            qs[32]: x = d q
 *   IQ4_NL d            qs[16]: x = d table[q];     nibbles as in Q4_0
 *   MXFP4  e            qs[16]: x = 2^(e - 127) E2M1[q]; nibbles as in Q4_0
 *
 * Super-blocks of 256 numbers (k-quants; the layouts are those of GGML files):
 *   Q2_K   scales[16] qs[64] d dmin      16 groups of 16: x = d (scale & 15) q - dmin (scale >> 4)
 *   Q3_K   hmask[32] qs[64] scales[12] d 16 groups of 16: x = d (scale6 - 32) (q - 4)
 *   Q4_K   d dmin scales[12] qs[128]     8 groups of 32:  x = d scale6 q - dmin min6
 *   Q5_K   d dmin scales[12] qh[32] qs[128]
 *   Q6_K   ql[128] qh[64] scales[16] d   16 groups of 16: x = d scale8 (q - 32)
 *   IQ4_XS d scales_h scales_l[4] qs[128] 8 groups of 32: x = d (scale6 - 32) table[q]
 *   TQ1_0  qs[48] qh[4] d                ternary, five (four in qh) to a byte
 *   TQ2_0  qs[64] d                      ternary, two bits each
 */
#ifndef CONSORT_QUANT_BLOCKS_H
#define CONSORT_QUANT_BLOCKS_H

#include <stdint.h>

#define BLOCK_LEN 32  /* numbers in a small block, and per activation scale */
#define SUPER_LEN 256 /* numbers in a super-block */

struct block_q4_0 {
    uint16_t d;
    uint8_t qs[16];
};
struct block_q4_1 {
    uint16_t d, m;
    uint8_t qs[16];
};
struct block_q5_0 {
    uint16_t d;
    uint8_t qh[4], qs[16];
};
struct block_q5_1 {
    uint16_t d, m;
    uint8_t qh[4], qs[16];
};
struct block_q8_0 {
    uint16_t d;
    int8_t qs[32];
};
struct block_q2_k {
    uint8_t scales[16], qs[64];
    uint16_t d, dmin;
};
struct block_q3_k {
    uint8_t hmask[32], qs[64], scales[12];
    uint16_t d;
};
struct block_q4_k {
    uint16_t d, dmin;
    uint8_t scales[12], qs[128];
};
struct block_q5_k {
    uint16_t d, dmin;
    uint8_t scales[12], qh[32], qs[128];
};
struct block_q6_k {
    uint8_t ql[128], qh[64];
    int8_t scales[16];
    uint16_t d;
};
struct block_iq4_nl {
    uint16_t d;
    uint8_t qs[16];
};
struct block_iq4_xs {
    uint16_t d, scales_h;
    uint8_t scales_l[4], qs[128];
};
struct block_tq1_0 {
    uint8_t qs[48], qh[4];
    uint16_t d;
};
struct block_tq2_0 {
    uint8_t qs[64];
    uint16_t d;
};
struct block_mxfp4 {
    uint8_t e, qs[16];
};

_Static_assert(sizeof(struct block_q4_0) == 18, "Q4_0");
_Static_assert(sizeof(struct block_q4_1) == 20, "Q4_1");
_Static_assert(sizeof(struct block_q5_0) == 22, "Q5_0");
_Static_assert(sizeof(struct block_q5_1) == 24, "Q5_1");
_Static_assert(sizeof(struct block_q8_0) == 34, "Q8_0");
_Static_assert(sizeof(struct block_q2_k) == 84, "Q2_K");
_Static_assert(sizeof(struct block_q3_k) == 110, "Q3_K");
_Static_assert(sizeof(struct block_q4_k) == 144, "Q4_K");
_Static_assert(sizeof(struct block_q5_k) == 176, "Q5_K");
_Static_assert(sizeof(struct block_q6_k) == 210, "Q6_K");
_Static_assert(sizeof(struct block_iq4_nl) == 18, "IQ4_NL");
_Static_assert(sizeof(struct block_iq4_xs) == 136, "IQ4_XS");
_Static_assert(sizeof(struct block_tq1_0) == 54, "TQ1_0");
_Static_assert(sizeof(struct block_tq2_0) == 66, "TQ2_0");
_Static_assert(sizeof(struct block_mxfp4) == 17, "MXFP4");

/* The code book of IQ4_NL and IQ4_XS, and MXFP4's E2M1 numbers doubled (to be whole). */
extern const int8_t block_iq4_table[16];
extern const int8_t block_e2m1_doubled[16];

/* F16 and BF16 bits to float and back (to nearest even). */
float block_f16_to_f32(uint16_t bits);
uint16_t block_f32_to_f16(float value);
float block_bf16_to_f32(uint16_t bits);
uint16_t block_f32_to_bf16(float value);

#endif
