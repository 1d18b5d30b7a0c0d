// Products with a weight that was cut into tiles, on CPUs with AMX (bf16). A piece of a product is what one thread does in one
// go; pieces of a product may run in any order and on any threads.
#pragma once

#include <cstdint>

namespace tierline::engine {

constexpr int kTileRows = 16;    // rows of x in a tile; x, and what a product is written to, have a multiple of it
constexpr int kPanelColumns = 32; // columns of an output that a piece makes; also how many inputs a step of a product takes

enum class After {
    kStore, // out = product
    kAdd,   // out += product
    kGate,  // out = silu(gate) * up: of 32 columns the first 16 are of the gate, the others of up
};

// x [rows, k] times the transpose of a weight [n, k]; out [rows, n], with kGate [rows, n / 2]. n and k are multiples of 32.
struct Product {
    const std::uint16_t* x;
    const std::uint16_t* tiles;
    const float* bias; // [n], or null
    std::uint16_t* out;
    std::int64_t rows;
    int n;
    int k;
    After after;
};

// Whether this processor and kernel let this process use the tiles.
bool can_tile();

// Cuts a weight [n, k] of bf16 into tiles, n * k numbers.
void cut_into_tiles(const std::uint16_t* weight, int n, int k, std::uint16_t* tiles);

// A thread may run pieces between these two.
void begin_tiles();
void end_tiles();

std::int64_t pieces_of(const Product& product);
void run_piece(const Product& product, std::int64_t piece);

// All of it, on OpenMP's threads.
void multiply(const Product& product);

} // namespace tierline::engine
