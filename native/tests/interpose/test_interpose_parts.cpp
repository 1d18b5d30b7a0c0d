// The parts of the interposer that need no driver: tags, profiles, lanes' bookkeeping, memory books, the table's look-up.
#include "check.hpp"
#include "memory.hpp"
#include "profiles.hpp"
#include "streams.hpp"
#include "tag.hpp"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>
#include <unistd.h>

using namespace tierline;
using namespace tierline::interpose;

namespace tierline::interpose {
__thread Thread t_thread;
}

namespace {

void test_formulas() {
    // F = 2·M·N·K; B = s·(M·K + K·N + (1 + beta)·M·N).
    const Work gemm = gemm_work(128, 256, 64, 3, 2, 2, 4, false);
    CHECK_EQ(gemm.flops, 3 * 2.0 * 128 * 256 * 64);
    CHECK_EQ(gemm.bytes, 3 * (2.0 * (128 * 64 + 64 * 256) + 4.0 * 128 * 256));
    CHECK_EQ(gemm_work(8, 8, 8, 1, 4, 4, 4, true).bytes - gemm_work(8, 8, 8, 1, 4, 4, 4, false).bytes, 4.0 * 64);
    // A convolution of 32x64x56x56 with 128 filters of 3x3 in 4 groups, same size out.
    const double output = 32.0 * 128 * 56 * 56;
    const double filter = 128.0 * (64 / 4) * 3 * 3;
    const Work conv = convolution_work(output, filter, 128, 32.0 * 64 * 56 * 56, 2);
    CHECK_EQ(conv.flops, 2.0 * 32 * 128 * 56 * 56 * 64 * 3 * 3 / 4);
    CHECK_EQ(conv.bytes, 2.0 * (32.0 * 64 * 56 * 56 + filter + output));
    const Work attention = attention_work(2, 16, 4, 128, 1024, 64, 2, false);
    CHECK_EQ(attention.flops, 4.0 * 2 * 16 * 128 * 1024 * 64);
    CHECK_EQ(attention_work(2, 16, 4, 128, 1024, 64, 2, true).flops, attention.flops / 2);
    CHECK_NE(shape_hash("gemm", {1, 2}), shape_hash("gemm", {2, 1}));
    CHECK_NE(shape_hash("gemm", {1, 2}), shape_hash("conv", {1, 2}));
}

void test_tags_nest() {
    {
        const Tagged outer(7, {100, 10});
        {
            const Tagged inner(8, {1, 1});
            CHECK_EQ(t_thread.tag.shape, 7U);
        }
        CHECK_EQ(t_thread.tag.shape, 7U);
        CHECK_EQ(t_thread.tag.flops, 100.0);
    }
    CHECK_EQ(t_thread.tag.shape, 0U);
    CHECK(takes_the_work("sm90_xmma_gemm_bf16"));
    CHECK(!takes_the_work("void cublasLt::splitKreduce_kernel<32>"));
}

// A lane covers what has returned without a gap, however threads overtake one another.
void test_lane() {
    Lane lane;
    const auto ask = [&] { lane.in_call.fetch_add(1); };
    ask();
    CHECK_EQ(lane.returned(1), 1U);
    ask();
    ask();
    ask();
    CHECK_EQ(lane.returned(3), 1U);  // 2 is still on its way
    CHECK_EQ(lane.returned(4), 1U);
    CHECK_EQ(lane.returned(2), 4U);
    ask();
    CHECK_EQ(lane.returned(0), 4U);  // it passed without a number
    ask();
    CHECK_EQ(lane.returned(6), 6U);  // 5 was given to nobody: nobody is on the way
    lane.owe(6);
    CHECK(lane.owes());
    lane.watched.store(6);
    CHECK(!lane.owes());
    lane.owe(5);
    CHECK_EQ(lane.owed.load(), 6U);
}

void test_memory_books() {
    Memory memory;
    interpose::Client client;
    memory.allocated(0x1000, &client, 64);
    CHECK_EQ(memory.freed(0x1000).bytes, 64);
    CHECK(memory.freed(0x1000).client == nullptr);
    CHECK(memory.freed(0).client == nullptr);
    // Physical memory stays until it is neither referenced nor mapped, in either order.
    memory.created(1, &client, 100);
    memory.mapped(0x10000, 50, 1);
    memory.mapped(0x20000, 50, 1);
    CHECK_EQ(memory.released(1).bytes, 0);
    CHECK(memory.unmapped(0x10000, 50).empty());
    const auto last = memory.unmapped(0x20000, 50);
    CHECK_EQ(last.size(), std::size_t{1});
    CHECK_EQ(last.at(0).bytes, 100);
    memory.created(2, &client, 30);
    memory.retained(2);
    CHECK_EQ(memory.released(2).bytes, 0);
    CHECK_EQ(memory.released(2).bytes, 30);
}

void test_profiles() {
    std::string path = "/tmp/tierline-profile-XXXXXX";
    const int file = mkstemp(path.data());
    REQUIRE(file >= 0);
    close(file);
    std::ofstream(path) << "key,name,duration_ns,grid,sm_util,bw_util,source\n"
                           "00000000000000ff,\"void f<int, float>(a, b)\",1000,,0.5,0.25,ncu\n"
                           ",plain,2000,4x1x1,0.1,1.5,orion\n"
                           ",plain,3000,,0.2,0.2,event\n"
                           ",short row\n"
                           ",no duration,0,,0.1,0.1,event\n";
    Profiles profiles;
    profiles.load(path);
    unlink(path.c_str());
    const auto* by_key = profiles.find(0xff, "whatever", {1, 1, 1}, {1, 1, 1});
    REQUIRE(by_key != nullptr);
    CHECK_EQ(by_key->name, "void f<int, float>(a, b)");
    CHECK_EQ(by_key->demand.sm_ppm, 500'000);
    CHECK_EQ(by_key->source, Source::counters);
    const auto* by_grid = profiles.find(1, "plain", {4, 1, 1}, {32, 1, 1});
    REQUIRE(by_grid != nullptr);
    CHECK_EQ(by_grid->demand.duration_ns, 2000);
    CHECK_EQ(by_grid->demand.bw_ppm, kWhole);  // no share is above the whole
    const auto* by_name = profiles.find(1, "plain", {5, 1, 1}, {32, 1, 1});
    REQUIRE(by_name != nullptr);
    CHECK_EQ(by_name->demand.duration_ns, 3000);
    CHECK(profiles.find(1, "no duration", {1, 1, 1}, {1, 1, 1}) == nullptr);
    CHECK(profiles.find(1, "unknown", {1, 1, 1}, {1, 1, 1}) == nullptr);
}

}  // namespace

int main() {
    test_formulas();
    test_tags_nest();
    test_lane();
    test_memory_books();
    test_profiles();
    return check_result();
}
