#include "tiled_product.hpp"

#include <initializer_list>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define TIERLINE_AMX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")))
#endif

namespace tierline::engine {

void cut_into_tiles(const std::uint16_t* weight, int n, int k, std::uint16_t* tiles) {
    for (int panel = 0; panel < n; panel += kPanelColumns) {
        for (int step = 0; step < k; step += 32) {
            for (int side = 0; side < kPanelColumns; side += 16) {
                for (int pair = 0; pair < 32; pair += 2) { // a row of a tile: two inputs of each of 16 columns
                    for (int column = 0; column < 16; ++column) {
                        const std::int64_t from = static_cast<std::int64_t>(panel + side + column) * k + step + pair;
                        *tiles++ = weight[from];
                        *tiles++ = weight[from + 1];
                    }
                }
            }
        }
    }
}

#if defined(TIERLINE_AMX)
namespace {

using Bf16 = std::uint16_t;
constexpr std::int64_t kBlockRows = 512; // their inputs stay in the second-level cache while panel after panel goes by
constexpr int kStepNumbers = kPanelColumns * 32; // of the weight, in a step
constexpr int kAhead = 2 * kStepNumbers;

struct alignas(64) TileShapes {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileShapes kShapes; // not a local: GCC 12 does not know that all of it is read, and would leave out what sets it

// sums [16 * Blocks, 32] = x [16 * Blocks, 32 * steps] times a panel.
template <int Blocks>
TIERLINE_AMX inline void multiply_panel(const Bf16* x, std::int64_t k, const Bf16* tiles, int steps, float* sums) {
    const std::int64_t row_bytes = k * 2;
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (Blocks == 2) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int step = 0; step < steps; ++step) {
        for (int line = 0; line < kStepNumbers; line += 32) {
            _mm_prefetch(reinterpret_cast<const char*>(tiles + kAhead + line), _MM_HINT_T0);
        }
        _tile_loadd(6, tiles, 64);
        _tile_loadd(4, x, row_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, tiles + kStepNumbers / 2, 64);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (Blocks == 2) {
            _tile_loadd(5, x + kTileRows * k, row_bytes);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        x += 32;
        tiles += kStepNumbers;
    }
    _tile_stored(0, sums, kPanelColumns * 4);
    _tile_stored(1, sums + 16, kPanelColumns * 4);
    if constexpr (Blocks == 2) {
        _tile_stored(2, sums + 16 * kPanelColumns, kPanelColumns * 4);
        _tile_stored(3, sums + 16 * kPanelColumns + 16, kPanelColumns * 4);
    }
}

TIERLINE_AMX inline __m512 widen(__m256i narrow) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

TIERLINE_AMX inline __m256i narrow(__m512 wide) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(wide)); }

TIERLINE_AMX inline __m512 rounded(__m512 wide) { return widen(narrow(wide)); }

TIERLINE_AMX inline __m256i load(const Bf16* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

TIERLINE_AMX inline void store(Bf16* to, __m256i numbers) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), numbers); }

// x / (1 + e^-x); e to about 1e-7 relative: 2^n times a polynomial on half an octave either side.
TIERLINE_AMX inline __m512 silu(__m512 x) {
    const __m512 bounded = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.0F)), _mm512_set1_ps(87.0F));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(bounded, _mm512_set1_ps(-1.44269504F)), 8);
    __m512 f = _mm512_sub_ps(_mm512_setzero_ps(), bounded);
    f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375F), f); // ln 2 in two parts
    f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4F), f);
    __m512 y = _mm512_set1_ps(1.0F / 5040);
    for (const float term : {1.0F / 720, 1.0F / 120, 1.0F / 24, 1.0F / 6, 0.5F, 1.0F, 1.0F}) {
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(term));
    }
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0F), _mm512_scalef_ps(y, n)));
}

// Every number is rounded where PyTorch's own operations would round it.
template <After Then>
TIERLINE_AMX inline void write(const Product& product, const float* sums, std::int64_t row, int rows, int column) {
    const std::int64_t width = Then == After::kGate ? product.n / 2 : product.n;
    Bf16* out = product.out + row * width + (Then == After::kGate ? column / 2 : column);
    __m512 left_bias = _mm512_setzero_ps(), right_bias = left_bias;
    if (product.bias != nullptr) {
        left_bias = _mm512_loadu_ps(product.bias + column);
        right_bias = _mm512_loadu_ps(product.bias + column + 16);
    }
    for (int i = 0; i < rows; ++i, sums += kPanelColumns, out += width) {
        const __m512 left = _mm512_add_ps(_mm512_loadu_ps(sums), left_bias);
        const __m512 right = _mm512_add_ps(_mm512_loadu_ps(sums + 16), right_bias);
        if constexpr (Then == After::kGate) {
            store(out, narrow(_mm512_mul_ps(rounded(silu(rounded(left))), rounded(right))));
        } else if constexpr (Then == After::kAdd) {
            store(out, narrow(_mm512_add_ps(widen(load(out)), rounded(left))));
            store(out + 16, narrow(_mm512_add_ps(widen(load(out + 16)), rounded(right))));
        } else {
            store(out, narrow(left));
            store(out + 16, narrow(right));
        }
    }
}

template <After Then> TIERLINE_AMX void run_piece_of(const Product& product, std::int64_t piece) {
    alignas(64) float sums[2 * kTileRows * kPanelColumns];
    const int panels = product.n / kPanelColumns, steps = product.k / 32;
    const int panel = static_cast<int>(piece % panels);
    const Bf16* tiles = product.tiles + static_cast<std::int64_t>(panel) * steps * kStepNumbers;
    std::int64_t row = piece / panels * kBlockRows;
    const std::int64_t end = row + kBlockRows < product.rows ? row + kBlockRows : product.rows;
    for (; row + 2 * kTileRows <= end; row += 2 * kTileRows) {
        multiply_panel<2>(product.x + row * product.k, product.k, tiles, steps, sums);
        write<Then>(product, sums, row, 2 * kTileRows, panel * kPanelColumns);
    }
    if (row < end) {
        multiply_panel<1>(product.x + row * product.k, product.k, tiles, steps, sums);
        write<Then>(product, sums, row, kTileRows, panel * kPanelColumns);
    }
}

} // namespace

bool can_tile() {
    static const bool can = [] {
        __builtin_cpu_init();
        if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16"))) {
            return false;
        }
        unsigned a = 0, b = 0, c = 0, d = 0;
        constexpr unsigned kBf16Bit = 1U << 22, kTileBit = 1U << 24;
        if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kBf16Bit) == 0 || (d & kTileBit) == 0) { return false; }
        constexpr long kAskForState = 0x1023, kTileData = 18; // ARCH_REQ_XCOMP_PERM: the kernel has to make room for tiles
        return syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
    }();
    return can;
}

TIERLINE_AMX void begin_tiles() {
    _tile_loadconfig(&kShapes);
}

TIERLINE_AMX void end_tiles() { _tile_release(); }

std::int64_t pieces_of(const Product& product) {
    return (product.rows + kBlockRows - 1) / kBlockRows * (product.n / kPanelColumns);
}

void run_piece(const Product& product, std::int64_t piece) {
    switch (product.after) {
    case After::kStore: run_piece_of<After::kStore>(product, piece); break;
    case After::kAdd: run_piece_of<After::kAdd>(product, piece); break;
    case After::kGate: run_piece_of<After::kGate>(product, piece); break;
    }
}

#else

bool can_tile() { return false; }
void begin_tiles() {}
void end_tiles() {}
std::int64_t pieces_of(const Product&) { return 0; }
void run_piece(const Product&, std::int64_t) {}

#endif

void multiply(const Product& product) {
    const std::int64_t pieces = pieces_of(product);
#pragma omp parallel
    {
        begin_tiles();
#pragma omp for schedule(dynamic, 4)
        for (std::int64_t piece = 0; piece < pieces; ++piece) { run_piece(product, piece); }
        end_tiles();
    }
}

} // namespace tierline::engine
