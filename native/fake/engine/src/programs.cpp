// The workloads: what the host thread of each job does, step by step. Models are built layer by layer from their
// published shapes, so durations and utilisations follow from arithmetic; nothing is set to a wished-for time.
// Host costs: 5 us a launch from an eager framework, 2.5 us from a C++ runtime, 9 us for a graph launch; a small-batch
// server is therefore launch-bound, with grids smaller than the device, as such servers are.
// Servers get requests at 40-50 % of what the idle device could serve, the middle of Orion's range of loads.
// Over 400 lines because every model is one list of layers over the same Build class.
#include <map>
#include <string>
#include <tuple>

#include "kernel_builders.hpp"
#include "tierline/fake/programs.hpp"

namespace tierline::fake {
namespace {

using namespace build;

constexpr std::int64_t eager_ns = 5000, runtime_ns = 2500, graph_launch_ns = 9000;
constexpr std::int64_t gib = std::int64_t{1} << 30;

// Collects the steps of one program; equal kernels get one number.
class Build {
public:
    Build(const char* name, const char* what, std::int64_t launch_ns, std::int64_t memory) : launch_ns_(launch_ns) {
        p_.name = name;
        p_.what = what;
        p_.memory_bytes = memory;
    }
    std::uint32_t number(const KernelSpec& k) {
        const std::string key(reinterpret_cast<const char*>(&k.name), sizeof k.name);
        for (std::uint32_t i : by_name_[key]) {
            const KernelSpec& o = p_.kernels[i];
            if (o.flops_per_block == k.flops_per_block && o.bytes_per_block == k.bytes_per_block &&
                o.l2_hit == k.l2_hit && o.grid[0] == k.grid[0] && o.grid[1] == k.grid[1] && o.grid[2] == k.grid[2] &&
                o.shape[2] == k.shape[2])
                return i;
        }
        p_.kernels.push_back(k);
        by_name_[key].push_back(static_cast<std::uint32_t>(p_.kernels.size() - 1));
        return static_cast<std::uint32_t>(p_.kernels.size() - 1);
    }
    void launch(const KernelSpec& k, std::uint16_t stream = 0) {
        if (recording_) p_.graphs.back().push_back(number(k));
        else step(StepKind::launch, stream, number(k), launch_ns_);
    }
    void step(StepKind kind, std::uint16_t stream = 0, std::uint32_t index = 0, std::int64_t host_ns = 1000) {
        p_.loop.push_back({kind, stream, index, host_ns, 0, Direction::host_to_device});
        p_.streams = std::max<std::int32_t>(p_.streams, stream + 1);
        if (kind == StepKind::record)
            p_.events = std::max<std::int32_t>(p_.events, static_cast<std::int32_t>(index) + 1);
    }
    void copy(std::int64_t bytes, Direction direction, std::uint16_t stream = 0) {
        p_.loop.push_back({StepKind::copy, stream, 0, 3000, bytes, direction});
        p_.streams = std::max<std::int32_t>(p_.streams, stream + 1);
    }
    void host(std::int64_t ns) { step(StepKind::host, 0, 0, ns); }
    void begin_graph() {
        p_.graphs.emplace_back();
        recording_ = true;
    }
    void end_graph() { recording_ = false; }
    void replay(std::uint32_t graph, std::uint16_t stream = 0) {
        step(StepKind::graph, stream, graph, graph_launch_ns);
    }
    Program closed_loop() {
        step(StepKind::end_iteration, 0, 0, 0);
        return p_;
    }
    Program server(double arrivals_per_s) {
        p_.kind = ProgramKind::server;
        p_.arrivals_per_s = arrivals_per_s;
        return closed_loop();
    }

private:
    Program p_;
    std::int64_t launch_ns_;
    bool recording_ = false;
    std::map<std::string, std::vector<std::uint32_t>> by_name_;
};

// ---- vision -----------------------------------------------------------------------------------------------------

struct ConvLayer { int p, channels, filters, r, stride; };

std::vector<ConvLayer> resnet50_layers() {
    std::vector<ConvLayer> layers{{112, 4, 64, 7, 2}};
    const int stages[4][4] = {{56, 64, 256, 3}, {28, 128, 512, 4}, {14, 256, 1024, 6}, {7, 512, 2048, 3}};
    int channels = 64;
    for (int s = 0; s < 4; ++s) {
        const auto [p, mid, out, blocks] = std::tuple{stages[s][0], stages[s][1], stages[s][2], stages[s][3]};
        for (int b = 0; b < blocks; ++b) {
            const int stride = s > 0 && b == 0 ? 2 : 1;
            layers.push_back({p * stride, channels, mid, 1, 1});
            layers.push_back({p, mid, mid, 3, stride});
            layers.push_back({p, mid, out, 1, 1});
            if (b == 0) layers.push_back({p, channels, out, 1, stride});
            channels = out;
        }
    }
    return layers;
}

// Mixed precision, channels last, unfused batch norm as frameworks run it: forward conv, statistics and apply; backward
// two norm passes, data and weight gradients; one multi-tensor SGD over 25.6 million parameters in four launches.
Program resnet50_train(const char* name, int batch) {
    Build b(name, "ResNet-50 training step, mixed precision, eager", eager_ns,
            std::int64_t{batch} * 90 * (1 << 20) + 2 * gib);
    b.copy(std::int64_t{batch} * 3 * 224 * 224, Direction::host_to_device);
    const auto layers = resnet50_layers();
    for (const ConvLayer& l : layers) {
        const std::int64_t elements = std::int64_t{batch} * l.p * l.p * l.filters;
        b.launch(conv(batch, l.p, l.channels, l.filters, l.r, l.stride));
        b.launch(reduction("batch_norm_collect_statistics", elements));
        b.launch(elementwise("batch_norm_transform_relu", elements, 2, 14));
    }
    b.launch(reduction("avg_pool", std::int64_t{batch} * 49 * 2048));
    b.launch(gemm(small, batch, 1000, 2048));
    b.launch(reduction("log_softmax_nll", std::int64_t{batch} * 1000));
    b.launch(gemm(small, batch, 2048, 1000));
    b.launch(gemm(small, 1000, 2048, batch));
    for (auto l = layers.rbegin(); l != layers.rend(); ++l) {
        const std::int64_t elements = std::int64_t{batch} * l->p * l->p * l->filters;
        b.launch(reduction("batch_norm_backward_reduce", elements, 4));
        b.launch(elementwise("batch_norm_backward_apply", elements, 3, 16));
        if (l->channels > 4) b.launch(conv(batch, l->p * l->stride, l->filters, l->channels, l->r, 1));
        // The weight gradient reduces over all positions: few output tiles, so the library splits that dimension.
        const std::int64_t positions = std::int64_t{batch} * l->p * l->p;
        const std::int64_t tiles = ceil_div(l->filters, 64) * ceil_div(std::int64_t{l->channels} * l->r * l->r, 64);
        const int split =
            static_cast<int>(std::clamp<std::int64_t>(528 / tiles, 1, std::max<std::int64_t>(1, positions / 256)));
        b.launch(gemm(conv_small, l->filters, std::int64_t{l->channels} * l->r * l->r, positions, 1, split));
    }
    for (int i = 0; i < 4; ++i) {
        KernelSpec sgd = adam(6'400'000);
        std::memset(sgd.name, 0, sizeof sgd.name);
        std::strncpy(sgd.name, "multi_tensor_apply_kernel_sgd", max_name - 1);
        sgd.bytes_per_block = 20.0 * 8192;   // parameter and momentum read and written, gradient read
        b.launch(sgd);
    }
    return b.closed_loop();
}

// An optimised runtime: norm and activation folded into the convolution.
void resnet50_forward(Build& b, int batch) {
    for (const ConvLayer& l : resnet50_layers()) b.launch(conv(batch, l.p, l.channels, l.filters, l.r, l.stride));
    b.launch(reduction("avg_pool", std::int64_t{batch} * 49 * 2048));
    b.launch(gemm(small, batch, 1000, 2048));
    b.launch(reduction("softmax", std::int64_t{batch} * 1000));
}

Program vision_server(const char* name, int batch, double rate) {
    Build b(name, "ResNet-50 inference requests, fused runtime", runtime_ns, 3 * gib);
    b.copy(std::int64_t{batch} * 3 * 224 * 224, Direction::host_to_device);
    resnet50_forward(b, batch);
    b.copy(std::int64_t{batch} * 4000, Direction::device_to_host);
    b.step(StepKind::synchronize);
    return b.server(rate);
}

Program vision_batch(const char* name, int batch) {
    Build b(name, "ResNet-50 inference over a data set, large batches", runtime_ns, 12 * gib);
    b.copy(std::int64_t{batch} * 3 * 224 * 224, Direction::host_to_device, 1);
    b.step(StepKind::record, 1, 0);
    b.step(StepKind::wait_event, 0, 0);
    resnet50_forward(b, batch);
    b.copy(std::int64_t{batch} * 4000, Direction::device_to_host);
    b.step(StepKind::synchronize);
    return b.closed_loop();
}

// MobileNetV2-like at batch 1: depthwise convolutions are memory-bound and tiny, pointwise ones small GEMMs.
Program mobilenet_server(const char* name, double rate) {
    Build b(name, "MobileNet-like inference, batch 1: tiny kernels, eager", eager_ns, 2 * gib);
    b.copy(3 * 224 * 224, Direction::host_to_device);
    const int stages[7][4] = {{112, 32, 16, 1}, {56, 96, 24, 2},  {28, 144, 32, 3}, {14, 192, 64, 4},
                              {14, 384, 96, 3}, {7, 576, 160, 3}, {7, 960, 320, 1}};
    for (const auto& s : stages) {
        for (int i = 0; i < s[3]; ++i) {
            const std::int64_t positions = std::int64_t{s[0]} * s[0];
            b.launch(gemm(small, positions, s[1], s[2]));
            b.launch(elementwise("depthwise_conv_relu6", positions * s[1], 2, 40));
            b.launch(gemm(small, positions, s[2], s[1]));
        }
    }
    b.launch(gemm(small, 49, 1280, 320));
    b.launch(reduction("avg_pool", 49 * 1280));
    b.launch(gemm(small, 1, 1000, 1280));
    b.copy(4000, Direction::device_to_host);
    b.step(StepKind::synchronize);
    return b.server(rate);
}

// ---- transformers -----------------------------------------------------------------------------------------------

const Tile& tile_for(std::int64_t m, std::int64_t n) {
    // What a library's heuristic does: the largest tile that still gives about a wave of blocks on 132 SMs.
    if (ceil_div(m, 128) * ceil_div(n, 256) >= 120) return large;
    if (ceil_div(m, 128) * ceil_div(n, 128) >= 120) return medium;
    return small;
}
KernelSpec linear(std::int64_t m, std::int64_t n, std::int64_t k) { return gemm(tile_for(m, n), m, n, k); }

void encoder_forward(Build& b, std::int64_t batch, std::int64_t length, std::int64_t hidden, int layers,
                     bool training) {
    const std::int64_t rows = batch * length;
    for (int i = 0; i < layers; ++i) {
        b.launch(linear(rows, 3 * hidden, hidden));
        b.launch(attention("flash_fwd_kernel", batch, hidden / 64, length, 64, false));
        b.launch(linear(rows, hidden, hidden));
        if (training) b.launch(elementwise("dropout_add", rows * hidden, 3.5, 16));
        b.launch(norm("layer_norm_kernel", rows, hidden, training ? 2 : 3));
        b.launch(linear(rows, 4 * hidden, hidden));
        b.launch(elementwise("gelu_kernel", rows * 4 * hidden, 2, 30));
        b.launch(linear(rows, hidden, 4 * hidden));
        if (training) b.launch(elementwise("dropout_add", rows * hidden, 3.5, 16));
        b.launch(norm("layer_norm_kernel", rows, hidden, training ? 2 : 3));
    }
}

void encoder_backward(Build& b, std::int64_t batch, std::int64_t length, std::int64_t hidden, int layers) {
    const std::int64_t rows = batch * length;
    const auto both = [&](std::int64_t n, std::int64_t k) {        // data and weight gradient of a linear layer
        b.launch(linear(rows, k, n));
        const std::int64_t tiles = ceil_div(n, 128) * ceil_div(k, 128);
        b.launch(gemm(medium, n, k, rows, 1, static_cast<int>(std::clamp<std::int64_t>(264 / tiles, 1, 8))));
    };
    for (int i = 0; i < layers; ++i) {
        b.launch(norm("layer_norm_backward", rows, hidden, 3));
        b.launch(elementwise("dropout_backward", rows * hidden, 2.5, 12));
        both(hidden, 4 * hidden);
        b.launch(elementwise("gelu_backward", rows * 4 * hidden, 3, 40));
        both(4 * hidden, hidden);
        b.launch(norm("layer_norm_backward", rows, hidden, 3));
        b.launch(elementwise("dropout_backward", rows * hidden, 2.5, 12));
        both(hidden, hidden);
        b.launch(attention("flash_bwd_kernel", batch, hidden / 64, length, 64, false, 2.5));
        both(3 * hidden, hidden);
    }
}

Program bert_train(const char* name, std::int64_t batch, std::int64_t length) {
    Build b(name, "BERT-base training step, mixed precision, eager", eager_ns, 24 * gib);
    b.copy(batch * length * 8, Direction::host_to_device);
    b.launch(embedding(batch * length, 768));
    encoder_forward(b, batch, length, 768, 12, true);
    b.launch(linear(batch * length, 30592, 768));
    b.launch(reduction("softmax_cross_entropy", batch * length * 30592, 4));
    b.launch(linear(batch * length, 768, 30592));
    b.launch(gemm(large, 30592, 768, batch * length));
    encoder_backward(b, batch, length, 768, 12);
    for (int i = 0; i < 4; ++i) b.launch(adam(27'500'000));
    return b.closed_loop();
}

Program bert_server(const char* name, std::int64_t batch, double rate) {
    Build b(name, "BERT-base inference requests, small batch, 128 tokens each", runtime_ns, 3 * gib);
    b.copy(batch * 128 * 8, Direction::host_to_device);
    b.launch(embedding(batch * 128, 768));
    encoder_forward(b, batch, 128, 768, 12, false);
    b.launch(linear(batch, 768, 768));
    b.copy(batch * 3072, Direction::device_to_host);
    b.step(StepKind::synchronize);
    return b.server(rate);
}

// An 8-billion-parameter decoder: hidden 4096, 32 layers, 8 KV heads of 128, feed-forward 14336, vocabulary 128256.
void decode_step(Build& b, std::int64_t batch, std::int64_t context) {
    for (int layer = 0; layer < 32; ++layer) {
        b.launch(norm("rms_norm", batch, 4096, 3));
        b.launch(skinny(batch, 6144, 4096, 4));
        b.launch(elementwise("rope_and_cache", batch * 6144, 2, 20));
        b.launch(decode_attention(batch, 8, context, 128, batch >= 32 ? 2 : 8));
        b.launch(skinny(batch, 4096, 4096, 6));
        b.launch(norm("rms_norm", batch, 4096, 3));
        b.launch(skinny(batch, 28672, 4096, 1));
        b.launch(elementwise("silu_mul", batch * 14336, 3, 24));
        b.launch(skinny(batch, 4096, 14336, 6));
    }
    b.launch(skinny(batch, 128256, 4096, 1));
    b.launch(reduction("sample_argmax", batch * 128256));
}

Program llm_decode(const char* name, std::int64_t batch, std::int64_t context, int tokens, double rate) {
    Build b(name, "8B decoder, token by token as CUDA graphs: memory-bound", runtime_ns,
            16 * gib + batch * context * 131072);
    b.begin_graph();
    decode_step(b, batch, context);
    b.end_graph();
    for (int i = 0; i < tokens; ++i) {
        b.replay(0);
        b.copy(batch * 8, Direction::device_to_host);
        b.step(StepKind::synchronize);
        b.host(60'000);                    // detokenise, schedule the next step
    }
    return rate > 0 ? b.server(rate) : b.closed_loop();
}

Program llm_prefill(const char* name, std::int64_t tokens, double rate) {
    Build b(name, "8B decoder, prompts: compute-bound", eager_ns, 20 * gib);
    b.copy(tokens * 8, Direction::host_to_device);
    b.launch(embedding(tokens, 4096));
    for (int layer = 0; layer < 32; ++layer) {
        b.launch(norm("rms_norm", tokens, 4096, 3));
        b.launch(linear(tokens, 6144, 4096));
        b.launch(elementwise("rope_and_cache", tokens * 6144, 2, 20));
        b.launch(attention("flash_fwd_kernel", 1, 32, tokens, 128, true));
        b.launch(linear(tokens, 4096, 4096));
        b.launch(norm("rms_norm", tokens, 4096, 3));
        b.launch(linear(tokens, 28672, 4096));
        b.launch(elementwise("silu_mul", tokens * 14336, 3, 24));
        b.launch(linear(tokens, 4096, 14336));
    }
    b.launch(skinny(1, 128256, 4096, 1));
    b.copy(8, Direction::device_to_host);
    b.step(StepKind::synchronize);
    return rate > 0 ? b.server(rate) : b.closed_loop();
}

// ---- the rest ---------------------------------------------------------------------------------------------------

void mlp_step(Build& b, std::int64_t batch, std::int64_t width, int layers) {
    for (int i = 0; i < layers; ++i) {
        b.launch(linear(batch, width, width));
        b.launch(elementwise("bias_relu", batch * width, 2, 6));
    }
    b.launch(reduction("mse_loss", batch * width));
    for (int i = 0; i < layers; ++i) {
        b.launch(elementwise("relu_backward", batch * width, 3, 6));
        b.launch(linear(batch, width, width));
        b.launch(linear(width, width, batch));
    }
    b.launch(adam(std::int64_t{layers} * width * width));
}

Program mlp_train(const char* name) {
    Build b(name, "small MLP training, eager: launch-bound", eager_ns, 1 * gib);
    b.copy(512 * 1024 * 2, Direction::host_to_device);
    mlp_step(b, 512, 1024, 4);
    return b.closed_loop();
}

Program graph_train(const char* name) {
    Build b(name, "MLP training as one CUDA graph a step", runtime_ns, 2 * gib);
    b.begin_graph();
    mlp_step(b, 2048, 2048, 6);
    b.end_graph();
    b.copy(2048 * 2048 * 2, Direction::host_to_device);
    b.replay(0);
    b.step(StepKind::synchronize);
    b.host(40'000);
    return b.closed_loop();
}

// A recommender: embedding rows and Adam over a large dense state dominate; the MLP on top is small.
Program optimizer_heavy(const char* name) {
    Build b(name, "recommender training: embeddings and Adam over 800 M parameters, memory-bound", eager_ns, 24 * gib);
    b.copy(65536 * 64, Direction::host_to_device);
    for (int i = 0; i < 8; ++i) b.launch(embedding(65536, 128));
    for (int i = 0; i < 3; ++i) {
        b.launch(linear(8192, 1024, 1024));
        b.launch(elementwise("bias_relu", 8192 * 1024, 2, 6));
    }
    for (int i = 0; i < 3; ++i) {
        b.launch(linear(8192, 1024, 1024));
        b.launch(gemm(medium, 1024, 1024, 8192, 1, 4));
    }
    for (int i = 0; i < 8; ++i) b.launch(adam(100'000'000));
    return b.closed_loop();
}

Program gemm_batch(const char* name) {
    Build b(name, "large matrix products back to back: tensor-bound", runtime_ns, 4 * gib);
    for (int i = 0; i < 4; ++i) {
        b.launch(gemm(large, 4096, 4096, 4096));
        b.launch(gemm(medium, 2048, 4096, 4096));
    }
    return b.closed_loop();
}

Program norm_batch(const char* name) {
    Build b(name, "norms and elementwise passes over large tensors: bandwidth-bound", runtime_ns, 8 * gib);
    for (int i = 0; i < 4; ++i) {
        b.launch(norm("rms_norm", 16384, 4096));
        b.launch(elementwise("add_kernel", 16384 * 4096, 3));
    }
    return b.closed_loop();
}

// Three streams of short kernels between copies, as an image pipeline on the device does.
Program preprocess(const char* name) {
    Build b(name, "image preprocessing: many small kernels and copies on three streams", runtime_ns, 2 * gib);
    for (int i = 0; i < 24; ++i) {
        const auto stream = static_cast<std::uint16_t>(i % 3);
        b.copy(1 << 20, Direction::host_to_device, stream);
        b.launch(elementwise("decode_idct", 1 << 20, 3, 60), stream);
        b.launch(elementwise("resize_bilinear", 3 * 256 * 256, 6, 40), stream);
        b.launch(elementwise("crop_mirror_normalize", 3 * 224 * 224, 3, 12), stream);
        b.launch(elementwise("cast_to_half", 3 * 224 * 224, 1.5, 4), stream);
    }
    b.step(StepKind::synchronize_all);
    return b.closed_loop();
}

// Data-parallel training: gradients of each layer group are reduced on a second stream behind an event.
Program nccl_train(const char* name) {
    Build b(name, "data-parallel transformer training with overlapped all-reduce", eager_ns, 20 * gib);
    encoder_forward(b, 16, 512, 1024, 4, true);
    for (std::uint32_t group = 0; group < 4; ++group) {
        encoder_backward(b, 16, 512, 1024, 1);
        b.step(StepKind::record, 0, group);
        b.step(StepKind::wait_event, 1, group);
        b.launch(all_reduce(2 * 12'600'000, 8), 1);
    }
    b.step(StepKind::record, 1, 4);
    b.step(StepKind::wait_event, 0, 4);
    b.launch(adam(50'000'000));
    return b.closed_loop();
}

// A producer on one stream releases a kernel that spins on another; a third round is released by the host.
Program spinning(const char* name) {
    Build b(name, "a kernel that spins until another stream's kernel, then the host, sets its flag", runtime_ns,
            1 * gib);
    KernelSpec post = elementwise("producer", 1 << 16, 2);
    post.post_token = 1;
    b.launch(spin("wait_for_flag", 1, 1), 1);
    b.launch(elementwise("work", 1 << 20, 3), 0);
    b.launch(post, 0);
    b.step(StepKind::synchronize_all);
    b.launch(spin("wait_for_host", 1, 2), 1);
    b.host(20'000);
    b.step(StepKind::post, 0, 2);
    b.step(StepKind::synchronize_all);
    return b.closed_loop();
}

std::vector<Program> make() {
    return {
        resnet50_train("resnet50-train", 64),
        bert_train("bert-train", 32, 128),
        mlp_train("mlp-train"),
        optimizer_heavy("optimizer-heavy"),
        vision_server("vision-server", 4, 1000),
        vision_batch("vision-batch", 64),
        mobilenet_server("mobilenet-server", 1500),
        bert_server("bert-server", 8, 500),
        llm_decode("llm-decode-server", 16, 2048, 4, 20),
        llm_decode("llm-decode-batch", 64, 2048, 4, 0),
        llm_prefill("llm-prefill-server", 512, 30),
        llm_prefill("llm-prefill-batch", 2048, 0),
        gemm_batch("gemm-batch"),
        norm_batch("norm-batch"),
        preprocess("preprocess"),
        graph_train("graph-train"),
        nccl_train("nccl-train"),
        spinning("spinning"),
    };
}

}  // namespace

const std::vector<Program>& programs() {
    static const std::vector<Program> all = make();
    return all;
}

const Program* find_program(const std::string& name) {
    for (const Program& p : programs())
        if (p.name == name) return &p;
    return nullptr;
}

// Kinds as in Orion's evaluation (inference beside training, inference beside inference, training beside training);
// chosen for cover of bounds and geometries before any policy ran on them.
const std::vector<Pair>& pairs() {
    static const std::vector<Pair> all = {
        {"vision-serving+resnet50-training", "vision-server", "resnet50-train",
         "inference beside training, both convolutions"},
        {"mobilenet-serving+bert-training", "mobilenet-server", "bert-train", "tiny launch-bound kernels beside GEMMs"},
        {"bert-serving+resnet50-training", "bert-server", "resnet50-train", "small GEMMs beside a mix of bounds"},
        {"vision-serving+llm-decoding", "vision-server", "llm-decode-batch",
         "inference beside inference: small grids beside a memory-bound graph"},
        {"llm-decode-serving+vision-batches", "llm-decode-server", "vision-batch",
         "inference beside inference: memory-bound graph beside convolutions"},
        {"resnet50-training+bert-training", "resnet50-train", "bert-train", "training beside training, mixed bounds"},
        {"bert-training+recommender-training", "bert-train", "optimizer-heavy",
         "training beside training: GEMM-heavy beside optimizer"},
        {"gemm+norm", "gemm-batch", "norm-batch", "plainly complementary: tensor-bound beside bandwidth-bound"},
        {"llm-decode-serving+recommender-training", "llm-decode-server", "optimizer-heavy",
         "hostile: both bandwidth-bound"},
        {"llm-prefill-serving+gemm", "llm-prefill-server", "gemm-batch",
         "hostile: both tensor-bound, blocks that fill an SM"},
        {"mlp-training+preprocessing", "mlp-train", "preprocess", "small kernels on both sides"},
        {"graph-training+data-parallel-training", "graph-train", "nccl-train",
         "a graph a step beside eager training with collectives"},
    };
    return all;
}

}  // namespace tierline::fake
