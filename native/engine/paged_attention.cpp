#include "paged_attention.hpp"

#include <cmath>

#if defined(__x86_64__)
#include <immintrin.h>
#define TIERLINE_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#endif

namespace tierline::engine {

#if defined(__x86_64__)
namespace {

constexpr int kLanes = 16; // floats in a register; also the tokens whose scores are made together

using Bf16 = std::uint16_t;

TIERLINE_AVX512 inline __m512bh load_pairs(const Bf16* from) {
    return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from));
}

TIERLINE_AVX512 inline __m512 load_floats(const Bf16* from) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

// Lane t of the result is the sum of row t's lanes.
TIERLINE_AVX512 inline __m512 sums_of_rows(__m512 (&row)[kLanes]) {
    for (int i = 0; i < 8; ++i) {
        row[i] = _mm512_add_ps(_mm512_unpacklo_ps(row[2 * i], row[2 * i + 1]),
                               _mm512_unpackhi_ps(row[2 * i], row[2 * i + 1]));
    }
    for (int i = 0; i < 4; ++i) {
        const __m512d a = _mm512_castps_pd(row[2 * i]), b = _mm512_castps_pd(row[2 * i + 1]);
        row[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    for (int i = 0; i < 2; ++i) {
        row[i] = _mm512_add_ps(_mm512_shuffle_f32x4(row[2 * i], row[2 * i + 1], 0x88),
                               _mm512_shuffle_f32x4(row[2 * i], row[2 * i + 1], 0xdd));
    }
    return _mm512_add_ps(_mm512_shuffle_f32x4(row[0], row[1], 0x88), _mm512_shuffle_f32x4(row[0], row[1], 0xdd));
}

// e^x for x <= 0, to about 1e-7 relative: 2^n times a polynomial on half an octave either side.
TIERLINE_AVX512 inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.0F));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504F)), 8);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375F), x); // ln 2 in two parts
    f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4F), f);
    __m512 y = _mm512_set1_ps(1.0F / 5040);
    for (const float term : {1.0F / 720, 1.0F / 120, 1.0F / 24, 1.0F / 6, 0.5F, 1.0F, 1.0F}) {
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(term));
    }
    return _mm512_scalef_ps(y, n);
}

TIERLINE_AVX512 inline __mmask16 first(int count) {
    return static_cast<__mmask16>(count >= kLanes ? 0xffff : (1U << count) - 1);
}

// One sequence and one head of keys, for G of the query heads that share it. `scores`: room for G * (length rounded up to 16).
template <int D, int G>
TIERLINE_AVX512 void attend(const Bf16* query, const Bf16* keys, const Bf16* values, const std::int32_t* table, int length,
                            int block_tokens, float scale, Bf16* out, float* scores) {
    constexpr int kPairs = D / 32, kParts = D / kLanes;
    const int padded = (length + kLanes - 1) / kLanes * kLanes;
    const auto row_of = [&](const Bf16* base, int token) {
        return base + (static_cast<std::int64_t>(table[token / block_tokens]) * block_tokens + token % block_tokens) * D;
    };
    __m512 highest[G];
    for (int g = 0; g < G; ++g) { highest[g] = _mm512_set1_ps(-INFINITY); }
    for (int token = 0; token < length; token += kLanes) {
        const Bf16* rows = row_of(keys, token);
        const Bf16* later_values = row_of(values, token);
        const Bf16* next = token + kLanes < length ? row_of(keys, token + kLanes) : rows;
        for (int line = 0; line < kLanes * D; line += 32) { // the reads jump from block to block: the hardware cannot guess
            _mm_prefetch(reinterpret_cast<const char*>(next + line), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(later_values + line), _MM_HINT_T1);
        }
        for (int g = 0; g < G; ++g) {
            __m512 products[kLanes];
            for (int t = 0; t < kLanes; ++t) {
                __m512 sum = _mm512_setzero_ps();
                for (int p = 0; p < kPairs; ++p) {
                    sum = _mm512_dpbf16_ps(sum, load_pairs(query + g * D + p * 32), load_pairs(rows + t * D + p * 32));
                }
                products[t] = sum;
            }
            __m512 score = _mm512_mul_ps(sums_of_rows(products), _mm512_set1_ps(scale));
            score = _mm512_mask_blend_ps(first(length - token), _mm512_set1_ps(-INFINITY), score);
            highest[g] = _mm512_max_ps(highest[g], score);
            _mm512_storeu_ps(scores + g * padded + token, score);
        }
    }
    float total[G];
    for (int g = 0; g < G; ++g) {
        const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(highest[g]));
        __m512 sum = _mm512_setzero_ps();
        for (int token = 0; token < padded; token += kLanes) {
            const __m512 distance = _mm512_sub_ps(_mm512_loadu_ps(scores + g * padded + token), top);
            const __m512 weight = _mm512_maskz_mov_ps(first(length - token), exponential(distance));
            sum = _mm512_add_ps(sum, weight);
            _mm512_storeu_ps(scores + g * padded + token, weight);
        }
        total[g] = _mm512_reduce_add_ps(sum);
    }
    __m512 mixed[G][kParts];
    for (int g = 0; g < G; ++g) {
        for (int i = 0; i < kParts; ++i) { mixed[g][i] = _mm512_setzero_ps(); }
    }
    for (int begin = 0; begin < length; begin += block_tokens) {
        const Bf16* rows = row_of(values, begin);
        const int count = length - begin < block_tokens ? length - begin : block_tokens;
        for (int t = 0; t < count; ++t) {
            for (int i = 0; i < kParts; ++i) {
                const __m512 value = load_floats(rows + t * D + i * kLanes);
                for (int g = 0; g < G; ++g) {
                    mixed[g][i] = _mm512_fmadd_ps(_mm512_set1_ps(scores[g * padded + begin + t]), value, mixed[g][i]);
                }
            }
        }
    }
    for (int g = 0; g < G; ++g) {
        const __m512 share = _mm512_set1_ps(1.0F / total[g]);
        for (int i = 0; i < kParts; ++i) {
            const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_mul_ps(mixed[g][i], share));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + g * D + i * kLanes), reinterpret_cast<__m256i>(rounded));
        }
    }
}

template <int D>
void decode_piece_sized(const PagedDecode& work, int piece, std::vector<float>& scores) {
    const std::int64_t head_size = static_cast<std::int64_t>(work.blocks) * work.block_tokens * D;
    const int sequence = piece / work.kv_heads, head = piece % work.kv_heads;
    const int length = work.lengths[sequence];
    const std::int32_t* table = work.tables + static_cast<std::int64_t>(sequence) * work.table_width;
    const Bf16* keys = work.keys + head * head_size;
    const Bf16* values = work.values + head * head_size;
    scores.resize(static_cast<std::size_t>(4) * (length + kLanes));
    for (int g = 0; g < work.group;) {
        const Bf16* query = work.query + sequence * work.query_stride + (head * work.group + g) * D;
        Bf16* out = work.out + (static_cast<std::int64_t>(piece) * work.group + g) * D;
        const auto run = [&](auto attend_some, int count) {
            attend_some(query, keys, values, table, length, work.block_tokens, work.scale, out, scores.data());
            g += count;
        };
        switch (work.group - g) {
        case 1: run(attend<D, 1>, 1); break;
        case 2: run(attend<D, 2>, 2); break;
        case 3: run(attend<D, 3>, 3); break;
        default: run(attend<D, 4>, 4); break;
        }
    }
}

} // namespace

bool can_decode(int head_dim, int block_tokens) {
    __builtin_cpu_init();
    const bool instructions = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                              __builtin_cpu_supports("avx512bf16");
    return instructions && (head_dim == 64 || head_dim == 128) && block_tokens % kLanes == 0;
}

void decode_piece(const PagedDecode& work, int piece, std::vector<float>& scores) {
    if (work.head_dim == 64) {
        decode_piece_sized<64>(work, piece, scores);
    } else {
        decode_piece_sized<128>(work, piece, scores);
    }
}

#else

bool can_decode(int, int) { return false; }

void decode_piece(const PagedDecode&, int, std::vector<float>&) {}

#endif

void decode(const PagedDecode& work) {
    const int pieces = work.sequences * work.kv_heads;
#pragma omp parallel
    {
        std::vector<float> scores; // of this thread
#pragma omp for schedule(dynamic, 1)
        for (int piece = 0; piece < pieces; ++piece) { decode_piece(work, piece, scores); }
    }
}

} // namespace tierline::engine
