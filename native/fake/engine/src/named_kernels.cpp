// Single kernels under the names that tests and the driver's programs use.
#include <string>

#include "kernel_builders.hpp"
#include "tierline/fake/programs.hpp"

namespace tierline::fake {
namespace {

KernelSpec named(const char* name, KernelSpec k) {
    std::memset(k.name, 0, sizeof k.name);
    std::strncpy(k.name, name, max_name - 1);
    return k;
}

std::vector<KernelSpec> make() {
    using namespace build;
    KernelSpec post = elementwise("post_flag", 32, 1);
    post.post_token = 1;
    KernelSpec cooperative = elementwise("grid_sync_step", 132 * 1024, 2);
    cooperative.cooperative = true;
    cooperative.block_floor_ns = 6000;     // several grid barriers
    KernelSpec empty = base("empty", Family::other, 1, 32, 16, 0);
    empty.block_floor_ns = 700;            // 900 ns of ramp make the usual 1.6 us of a kernel that does nothing
    return {
        named("gemm_8192", gemm(large, 8192, 8192, 8192)),
        named("gemm_4096", gemm(large, 4096, 4096, 4096)),
        named("gemm_2048", gemm(medium, 2048, 2048, 2048)),
        named("gemm_1024", gemm(small, 1024, 1024, 1024)),
        named("gemm_512", gemm(small, 512, 512, 512)),
        named("gemm_14336x4096", gemm(large, 4096, 14336, 4096)),
        named("gemm_skinny_1", skinny(1, 6144, 4096, 4)),
        named("gemm_skinny_64", skinny(64, 6144, 4096, 4)),
        norm("rms_norm_131072", 131072, 4096),
        norm("rms_norm_16384", 16384, 4096),
        norm("layer_norm_512", 512, 1024),
        elementwise("add_large", std::int64_t{1} << 28, 3),
        elementwise("gelu_large", std::int64_t{1} << 26, 2, 30),
        elementwise("add_small", 65536, 3),
        elementwise("cast_tiny", 4096, 1.5),
        named("adam_100m", adam(100'000'000)),
        reduction("reduce_sum", std::int64_t{1} << 24),
        named("flash_prefill", attention("flash_fwd_kernel", 4, 32, 4096, 128, true)),
        named("flash_decode", decode_attention(64, 8, 8192, 128, 4)),
        named("flash_decode_one", decode_attention(1, 8, 8192, 128, 16)),
        named("conv_3x3_256", conv(64, 14, 256, 256, 3, 1)),
        all_reduce(64 << 20, 8),
        spin("spin_until_flag", 1, 1),
        post,
        cooperative,
        empty,
    };
}

}  // namespace

const std::vector<KernelSpec>& named_kernels() {
    static const std::vector<KernelSpec> all = make();
    return all;
}

const KernelSpec* find_kernel(const std::string& name) {
    for (const KernelSpec& k : named_kernels())
        if (name == k.name) return &k;
    return nullptr;
}

}  // namespace tierline::fake
