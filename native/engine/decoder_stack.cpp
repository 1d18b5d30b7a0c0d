#include "decoder_stack.hpp"

#include <omp.h>
#include <sched.h>

#include <atomic>
#include <memory>

#include "tiled_product.hpp"

namespace tierline::engine {
namespace {

constexpr int kParts = 8; // at most, of a half
constexpr int kSpins = 4000;
constexpr std::int64_t kRows = 4; // a thread takes at a time

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// The threads of a call. Each part of the work is a number of pieces; who is free takes the next. A part begins when the one
// before has ended.
class Team {
public:
    explicit Team(int parts) : taken_(std::make_unique<Line[]>(static_cast<std::size_t>(parts))) {}

    void set_size(int size) { size_ = size; }

    template <typename Run> void share(int part, std::int64_t pieces, const Run& run) {
        std::atomic<std::int64_t>& taken = taken_[static_cast<std::size_t>(part)].count;
        for (std::int64_t piece = taken.fetch_add(1); piece < pieces; piece = taken.fetch_add(1)) { run(piece); }
        wait();
    }

private:
    struct alignas(64) Line {
        std::atomic<std::int64_t> count{0};
    };

    void wait() {
        const int round = round_.count.load();
        if (arrived_.count.fetch_add(1) + 1 == size_) {
            arrived_.count.store(0);
            round_.count.store(round + 1);
            return;
        }
        for (int spins = 0; round_.count.load() == round; ++spins) {
            if (spins < kSpins) {
                pause();
            } else {
                sched_yield(); // the others may be waiting for this very core
            }
        }
    }

    std::unique_ptr<Line[]> taken_;
    struct alignas(64) Count {
        std::atomic<int> count{0};
    };
    Count arrived_;
    Count round_;
    int size_ = 1;
};

std::int64_t row_pieces(std::int64_t rows) { return (rows + kRows - 1) / kRows; }

std::int64_t end_of(std::int64_t piece, std::int64_t rows) {
    return (piece + 1) * kRows < rows ? (piece + 1) * kRows : rows;
}

class Worker {
public:
    Worker(const DecoderShape& shape, const StackStep& step, Team& team) : shape_(shape), step_(step), team_(team) {}

    void half(int number, const DecoderLayer& layer) {
        part_ = (number - step_.begin) * kParts;
        const int layer_number = number / 2;
        const std::int64_t positions = static_cast<std::int64_t>(step_.blocks) * step_.block_tokens;
        const std::int64_t layer_size = shape_.kv_heads * positions * shape_.head_dim;
        std::uint16_t* keys = step_.keys + layer_number * layer_size;
        std::uint16_t* values = step_.values + layer_number * layer_size;
        const int width = shape_.heads * shape_.head_dim;
        const int qkv_width = width + 2 * shape_.kv_heads * shape_.head_dim;
        if (number % 2 == 0) {
            norm(layer.norm_before, layer.eps_before);
            multiply_by({step_.normed, layer.qkv, layer.qkv_bias, step_.qkv, step_.rows, qkv_width, shape_.hidden,
                         After::kStore});
            const Rotary rotary{step_.qkv, step_.cos,    step_.sin,    keys,      values,      step_.slots, step_.placed,
                                step_.placed, positions, shape_.heads, shape_.kv_heads, shape_.head_dim};
            team_.share(part_++, row_pieces(step_.placed), [&](std::int64_t piece) {
                rotate_and_place_rows(rotary, Number::kBf16, piece * kRows, end_of(piece, step_.placed));
            });
            return;
        }
        if (step_.decodes) {
            const int sequences = static_cast<int>(step_.placed);
            const PagedDecode work{step_.qkv,        keys,         values,           step_.attended,
                                   step_.tables,     step_.lengths, qkv_width,       sequences,
                                   shape_.kv_heads,  shape_.heads / shape_.kv_heads, shape_.head_dim,
                                   step_.blocks,     step_.block_tokens, step_.table_width, step_.scale};
            team_.share(part_++, static_cast<std::int64_t>(sequences) * shape_.kv_heads,
                        [&](std::int64_t piece) { decode_piece(work, static_cast<int>(piece), scores_); });
        }
        multiply_by({step_.attended, layer.out, nullptr, step_.x, step_.rows, shape_.hidden, width, After::kAdd});
        norm(layer.norm_between, layer.eps_between);
        multiply_by({step_.normed, layer.gate_up, nullptr, step_.mid, step_.rows, 2 * shape_.inner, shape_.hidden,
                     After::kGate});
        multiply_by({step_.mid, layer.down, nullptr, step_.x, step_.rows, shape_.hidden, shape_.inner, After::kAdd});
    }

private:
    void norm(const std::uint16_t* weight, float eps) {
        const Norm work{step_.x, nullptr, weight, step_.normed, step_.rows, shape_.hidden, eps};
        team_.share(part_++, row_pieces(step_.rows), [&](std::int64_t piece) {
            rms_norm_rows(work, Number::kBf16, piece * kRows, end_of(piece, step_.rows));
        });
    }

    void multiply_by(const Product& product) {
        team_.share(part_++, pieces_of(product), [&](std::int64_t piece) { run_piece(product, piece); });
    }

    const DecoderShape& shape_;
    const StackStep& step_;
    Team& team_;
    std::vector<float> scores_;
    int part_ = 0;
};

} // namespace

void run_stack(const DecoderShape& shape, const std::vector<DecoderLayer>& layers, const StackStep& step) {
    Team team((step.end - step.begin) * kParts);
#pragma omp parallel
    {
#pragma omp single
        team.set_size(omp_get_num_threads());
        begin_tiles();
        Worker worker(shape, step, team);
        for (int half = step.begin; half < step.end; ++half) { worker.half(half, layers[static_cast<std::size_t>(half / 2)]); }
        end_tiles();
    }
}

} // namespace tierline::engine
