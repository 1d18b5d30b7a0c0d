#include "image.hpp"

#include <cstdio>

namespace tierline::fake {

std::string module_text(const KernelSpec& kernel, const char* parameters) {
    char line[1024];
    std::snprintf(
        line, sizeof line,
        "FAKECUDA 1\nkernel %s block=%u threads=1024 regs=%d smem=%d dynamic_smem=%d flops=%.17g bytes=%.17g "
        "l2_hit=%.17g "
        "working_set=%.17g efficiency=%.17g dram_efficiency=%.17g saturating=%d floor_ns=%lld unit=%s spin=%u post=%u "
        "cooperative=%d%s%s\n",
        kernel.name, kernel.block[0] * kernel.block[1] * kernel.block[2], kernel.registers_per_thread,
        kernel.static_shared_bytes, kernel.dynamic_shared_bytes > 49152 ? kernel.dynamic_shared_bytes : 49152,
        kernel.flops_per_block, kernel.bytes_per_block, kernel.l2_hit, kernel.working_set_bytes,
        kernel.compute_efficiency, kernel.dram_efficiency, kernel.saturating_threads,
        static_cast<long long>(kernel.block_floor_ns), kernel.unit == Unit::tensor ? "tensor" : "fp32",
        kernel.spin == Spin::none ? 0U : kernel.spin_token, kernel.post_token, kernel.cooperative ? 1 : 0,
        *parameters != '\0' ? " params=" : "", parameters);
    return line;
}

}  // namespace tierline::fake
