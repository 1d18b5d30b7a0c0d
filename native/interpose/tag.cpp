#include "tag.hpp"

namespace tierline::interpose {

Work gemm_work(double m, double n, double k, double batch, double a_bytes, double b_bytes, double c_bytes, bool adds) {
    const double outputs = adds ? 2.0 : 1.0;
    return {2.0 * m * n * k * batch, batch * (a_bytes * m * k + b_bytes * k * n + c_bytes * outputs * m * n)};
}

Work convolution_work(double output_elements, double filter_elements, double filter_outputs, double input_elements,
                      double element_bytes) {
    const double per_output = filter_outputs > 0.0 ? filter_elements / filter_outputs : 0.0;
    return {2.0 * output_elements * per_output, element_bytes * (input_elements + filter_elements + output_elements)};
}

Work attention_work(double batch, double heads, double kv_heads, double queries, double keys, double width,
                    double element_bytes, bool causal) {
    const double flops = 4.0 * batch * heads * queries * keys * width * (causal ? 0.5 : 1.0);
    return {flops, element_bytes * batch * width * (2.0 * heads * queries + 2.0 * kv_heads * keys)};
}

std::uint64_t shape_hash(std::string_view op, std::initializer_list<std::int64_t> extents) {
    std::uint64_t hash = 0xcbf29ce484222325ULL;
    for (const char letter : op) hash = (hash ^ static_cast<unsigned char>(letter)) * 0x100000001b3ULL;
    for (const std::int64_t extent : extents) {
        hash = (hash ^ static_cast<std::uint64_t>(extent)) * 0x9e3779b97f4a7c15ULL;
        hash ^= hash >> 29;
    }
    return hash == 0 ? 1 : hash;
}

bool takes_the_work(std::string_view kernel) {
    for (const char* helper : {"splitKreduce", "reduceSplitK", "memset", "fill", "convertTensor", "transpose", "Transpose",
                               "nchwToNhwc", "nhwcToNchw", "scalPackedTensor"}) {
        if (kernel.find(helper) != std::string_view::npos) return false;
    }
    return true;
}

Tagged::Tagged(std::uint64_t shape, const Work& work) {
    if (t_thread.tag.depth++ > 0) return;
    t_thread.tag.shape = shape;
    t_thread.tag.flops = work.flops;
    t_thread.tag.bytes = work.bytes;
}

Tagged::~Tagged() {
    if (--t_thread.tag.depth > 0) return;
    t_thread.tag = {};
}

}  // namespace tierline::interpose
