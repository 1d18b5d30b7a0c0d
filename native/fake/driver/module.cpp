// The images that this driver loads: text. First line "FAKECUDA 1", then one line a kernel:
//     kernel NAME [key=value ...]
// Keys: block (threads that flops and bytes are meant for), threads (most of a block), regs, smem (static shared
// memory), dynamic_smem (most), flops and bytes (per block), l2_hit, working_set, efficiency, dram_efficiency,
// saturating, floor_ns, unit=fp32|tensor, spin and post (tokens), cooperative=1, params=8,8,4 (sizes of the
// arguments). A name that the engine knows starts from the engine's kernel. Lines that begin with # are comments.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "driver.hpp"
#include "tierline/fake/programs.hpp"

namespace tierline::fakecuda {
namespace {

KernelSpec default_spec() {
    KernelSpec spec{};
    spec.family = Family::other;
    spec.unit = Unit::fp32;
    spec.grid[0] = spec.grid[1] = spec.grid[2] = 1;
    spec.block[0] = 256;
    spec.block[1] = spec.block[2] = 1;
    spec.registers_per_thread = 32;
    spec.flops_per_block = 1e6;
    spec.bytes_per_block = 1e4;
    spec.compute_efficiency = 0.8;
    spec.dram_efficiency = 0.9;
    spec.saturating_threads = 1024;
    return spec;
}

bool set_parameters(Function& function, const std::string& value) {
    std::istringstream items(value);
    std::string item;
    function.parameters.clear();
    while (std::getline(items, item, ',')) {
        char* end = nullptr;
        const long size = std::strtol(item.c_str(), &end, 10);
        if (*end != '\0' || size <= 0 || size > 4096) return false;
        function.parameters.push_back(static_cast<std::size_t>(size));
    }
    return true;
}

bool set_key(Function& function, const std::string& key, const std::string& value) {
    if (key == "params") return set_parameters(function, value);
    KernelSpec& spec = function.spec;
    if (key == "unit") {
        spec.unit = value == "tensor" ? Unit::tensor : Unit::fp32;
        return value == "tensor" || value == "fp32";
    }
    char* end = nullptr;
    const double number = std::strtod(value.c_str(), &end);
    if (value.empty() || *end != '\0' || !std::isfinite(number) || number < 0) return false;
    const auto whole = static_cast<std::int32_t>(std::min(number, 2e9));
    if (key == "block") {
        spec.block[0] = static_cast<std::uint32_t>(whole);
        spec.block[1] = spec.block[2] = 1;
    } else if (key == "threads") {
        function.max_threads = whole;
    } else if (key == "regs") {
        spec.registers_per_thread = whole;
    } else if (key == "smem") {
        spec.static_shared_bytes = whole;
    } else if (key == "dynamic_smem") {
        function.max_dynamic_shared = whole;
    } else if (key == "flops") {
        spec.flops_per_block = number;
    } else if (key == "bytes") {
        spec.bytes_per_block = number;
    } else if (key == "l2_hit") {
        spec.l2_hit = number;
    } else if (key == "working_set") {
        spec.working_set_bytes = number;
    } else if (key == "efficiency") {
        spec.compute_efficiency = number;
    } else if (key == "dram_efficiency") {
        spec.dram_efficiency = number;
    } else if (key == "saturating") {
        spec.saturating_threads = whole;
    } else if (key == "floor_ns") {
        spec.block_floor_ns = static_cast<std::int64_t>(number);
    } else if (key == "spin") {
        spec.spin = whole != 0 ? Spin::until_released : Spin::none;
        spec.spin_token = static_cast<std::uint32_t>(whole);
    } else if (key == "post") {
        spec.post_token = static_cast<std::uint32_t>(whole);
    } else if (key == "cooperative") {
        spec.cooperative = whole != 0;
    } else {
        return false;
    }
    return true;
}

std::unique_ptr<Function> parse_kernel(std::istringstream& words, Module* module) {
    auto function = std::make_unique<Function>();
    if (!(words >> function->name)) return nullptr;
    const KernelSpec* known = find_kernel(function->name);
    function->spec = known != nullptr ? *known : default_spec();
    function->module = module;
    function->max_dynamic_shared = std::max(48 * 1024, function->spec.dynamic_shared_bytes);
    function->as_kernel.function = function.get();
    std::memset(function->spec.name, 0, sizeof function->spec.name);
    std::strncpy(function->spec.name, function->name.c_str(), sizeof function->spec.name - 1);
    std::string word;
    while (words >> word) {
        const auto equals = word.find('=');
        if (equals == std::string::npos || !set_key(*function, word.substr(0, equals), word.substr(equals + 1)))
            return nullptr;
    }
    return function;
}

}  // namespace

CUresult load_image(const void* image, Tag kind, Module*& out) {
    if (image == nullptr) return CUDA_ERROR_INVALID_VALUE;
    static constexpr char kFirstLine[] = "FAKECUDA 1\n";
    // Real images begin with other bytes; only then may it be read as a C string.
    if (std::strncmp(static_cast<const char*>(image), kFirstLine, sizeof kFirstLine - 1) != 0)
        return CUDA_ERROR_INVALID_IMAGE;
    std::istringstream lines(static_cast<const char*>(image));
    auto module = std::make_unique<Module>(kind);
    std::string line;
    std::getline(lines, line);
    while (std::getline(lines, line)) {
        std::istringstream words(line);
        std::string word;
        if (!(words >> word) || word[0] == '#') continue;
        auto function = word == "kernel" ? parse_kernel(words, module.get()) : nullptr;
        if (function == nullptr) return CUDA_ERROR_INVALID_IMAGE;
        module->functions.push_back(std::move(function));
    }
    out = module.release();
    return CUDA_SUCCESS;
}

}  // namespace tierline::fakecuda
