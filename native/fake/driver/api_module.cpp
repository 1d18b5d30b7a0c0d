// Modules, libraries, functions, kernels.
#include <algorithm>
#include <cstring>
#include <fstream>
#include <sstream>

#include "driver.hpp"

using namespace tierline::fakecuda;

namespace {

// A CUfunction of the same library as a handle of its own: a kernel handle is no function handle, but it may be cast.
Function* plain_function(CUfunction handle) { return to<Function>(handle, Tag::function); }

Function* find_function(const Module& module, const char* name) {
    for (const auto& function : module.functions) {
        if (function->name == name) return function.get();
    }
    return nullptr;
}

CUresult load(Entry entry, CUmodule* out, const void* image) {
    return call(entry, Need::context, [&](Session&) -> CUresult {
        if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (const CUresult forbidden = unsafe_call(); forbidden != CUDA_SUCCESS) return forbidden;
        Module* module = nullptr;
        const CUresult result = load_image(image, Tag::module, module);
        if (result == CUDA_SUCCESS) *out = from<CUmodule>(module);
        return result;
    });
}

void unload(Module& module) {
    for (const auto& function : module.functions) {
        function->tag = Tag::dead;
        function->as_kernel.tag = Tag::dead;
    }
    module.tag = Tag::dead;
}

CUresult read_attribute(const Function& function, int which, int* value) {
    switch (which) {
        case 0: *value = std::min(function.max_threads, spec().max_threads_per_block); return CUDA_SUCCESS;
        case 1: *value = function.spec.static_shared_bytes; return CUDA_SUCCESS;
        case 4: *value = function.spec.registers_per_thread; return CUDA_SUCCESS;
        case 5:
        case 6: *value = spec().compute_major * 10 + spec().compute_minor; return CUDA_SUCCESS;
        case 8: *value = function.max_dynamic_shared; return CUDA_SUCCESS;
        case 9: *value = -1; return CUDA_SUCCESS;
        default: *value = 0; return which >= 0 && which <= 15 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult write_attribute(Function& function, int which, int value) {
    if (which == 8) {
        if (value < 0 || value + function.spec.static_shared_bytes > spec().shared_bytes_per_block)
            return CUDA_ERROR_INVALID_VALUE;
        function.max_dynamic_shared = value;
        return CUDA_SUCCESS;
    }
    return which >= 9 && which <= 15 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult parameter_info(const Function& function, std::size_t index, std::size_t* offset, std::size_t* size) {
    if (index >= function.parameters.size() || offset == nullptr) return CUDA_ERROR_INVALID_VALUE;
    std::size_t at = 0;
    for (std::size_t i = 0; i <= index; ++i) {
        const std::size_t align = std::min<std::size_t>(function.parameters[i], 8);
        at = (at + align - 1) / align * align;
        if (i < index) at += function.parameters[i];
    }
    *offset = at;
    if (size != nullptr) *size = function.parameters[index];
    return CUDA_SUCCESS;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

CUresult cuModuleLoad(CUmodule* out, const char* path) {
    if (path == nullptr) return load(Entry::cuModuleLoad, out, nullptr);
    std::ifstream file(path);
    std::stringstream text;
    text << file.rdbuf();
    if (!file) {
        return call(Entry::cuModuleLoad, Need::context, [](Session&) -> CUresult { return CUDA_ERROR_FILE_NOT_FOUND; });
    }
    return load(Entry::cuModuleLoad, out, text.str().c_str());
}

CUresult cuModuleLoadData(CUmodule* out, const void* image) { return load(Entry::cuModuleLoadData, out, image); }

CUresult cuModuleLoadDataEx(CUmodule* out, const void* image, unsigned int, int*, void**) {
    return load(Entry::cuModuleLoadDataEx, out, image);
}

CUresult cuModuleLoadFatBinary(CUmodule* out, const void* image) {
    return load(Entry::cuModuleLoadFatBinary, out, image);
}

CUresult cuModuleUnload(CUmodule handle) {
    return call(Entry::cuModuleUnload, Need::context, [&](Session&) -> CUresult {
        auto* module = to<Module>(handle, Tag::module);
        if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        unload(*module);
        return CUDA_SUCCESS;
    });
}

CUresult cuModuleGetFunction(CUfunction* out, CUmodule handle, const char* name) {
    return call(Entry::cuModuleGetFunction, Need::context, [&](Session&) -> CUresult {
        if (out == nullptr || name == nullptr) return CUDA_ERROR_INVALID_VALUE;
        auto* module = to<Module>(handle, Tag::module);
        if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (log_enabled()) call_detail().text("name", name);
        Function* function = find_function(*module, name);
        if (function == nullptr) return CUDA_ERROR_NOT_FOUND;
        *out = from<CUfunction>(function);
        return CUDA_SUCCESS;
    });
}

CUresult cuModuleGetLoadingMode(int* mode) {
    return call(Entry::cuModuleGetLoadingMode, Need::device, [&](Session&) -> CUresult {
        *mode = 1;  // eager: an image here is loaded whole
        return CUDA_SUCCESS;
    });
}

CUresult cuModuleGetFunctionCount(unsigned int* count, CUmodule handle) {
    return call(Entry::cuModuleGetFunctionCount, Need::context, [&](Session&) -> CUresult {
        const auto* module = to<Module>(handle, Tag::module);
        if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        *count = static_cast<unsigned>(module->functions.size());
        return CUDA_SUCCESS;
    });
}

CUresult cuModuleEnumerateFunctions(CUfunction* out, unsigned int most, CUmodule handle) {
    return call(Entry::cuModuleEnumerateFunctions, Need::context, [&](Session&) -> CUresult {
        const auto* module = to<Module>(handle, Tag::module);
        if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        for (unsigned i = 0; i < most && i < module->functions.size(); ++i)
            out[i] = from<CUfunction>(module->functions[i].get());
        return CUDA_SUCCESS;
    });
}

CUresult cuLibraryLoadData(CUlibrary* out, const void* image, int*, void**, unsigned int, int*, void**, unsigned int) {
    return call(Entry::cuLibraryLoadData, Need::device, [&](Session&) -> CUresult {
        if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
        Module* library = nullptr;
        const CUresult result = load_image(image, Tag::library, library);
        if (result == CUDA_SUCCESS) *out = from<CUlibrary>(library);
        return result;
    });
}

CUresult cuLibraryUnload(CUlibrary handle) {
    return call(Entry::cuLibraryUnload, Need::device, [&](Session&) -> CUresult {
        auto* library = to<Module>(handle, Tag::library);
        if (library == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        unload(*library);
        return CUDA_SUCCESS;
    });
}

CUresult cuLibraryGetKernel(CUkernel* out, CUlibrary handle, const char* name) {
    return call(Entry::cuLibraryGetKernel, Need::device, [&](Session&) -> CUresult {
        if (out == nullptr || name == nullptr) return CUDA_ERROR_INVALID_VALUE;
        auto* library = to<Module>(handle, Tag::library);
        if (library == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (log_enabled()) call_detail().text("name", name);
        Function* function = find_function(*library, name);
        if (function == nullptr) return CUDA_ERROR_NOT_FOUND;
        *out = from<CUkernel>(&function->as_kernel);
        return CUDA_SUCCESS;
    });
}

CUresult cuLibraryGetModule(CUmodule* out, CUlibrary handle) {
    return call(Entry::cuLibraryGetModule, Need::context, [&](Session&) -> CUresult {
        auto* library = to<Module>(handle, Tag::library);
        if (library == nullptr || out == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        return CUDA_ERROR_NOT_SUPPORTED;  // a library's functions are reached through its kernels here
    });
}

CUresult cuLibraryGetKernelCount(unsigned int* count, CUlibrary handle) {
    return call(Entry::cuLibraryGetKernelCount, Need::device, [&](Session&) -> CUresult {
        const auto* library = to<Module>(handle, Tag::library);
        if (library == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        *count = static_cast<unsigned>(library->functions.size());
        return CUDA_SUCCESS;
    });
}

CUresult cuLibraryEnumerateKernels(CUkernel* out, unsigned int most, CUlibrary handle) {
    return call(Entry::cuLibraryEnumerateKernels, Need::device, [&](Session&) -> CUresult {
        const auto* library = to<Module>(handle, Tag::library);
        if (library == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        for (unsigned i = 0; i < most && i < library->functions.size(); ++i) {
            out[i] = from<CUkernel>(&library->functions[i]->as_kernel);
        }
        return CUDA_SUCCESS;
    });
}

CUresult cuKernelGetFunction(CUfunction* out, CUkernel handle) {
    return call(Entry::cuKernelGetFunction, Need::context, [&](Session&) -> CUresult {
        auto* kernel = to<Kernel>(handle, Tag::kernel);
        if (kernel == nullptr || out == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        *out = from<CUfunction>(kernel->function);
        return CUDA_SUCCESS;
    });
}

CUresult cuKernelGetLibrary(CUlibrary* out, CUkernel handle) {
    return call(Entry::cuKernelGetLibrary, Need::device, [&](Session&) -> CUresult {
        auto* kernel = to<Kernel>(handle, Tag::kernel);
        if (kernel == nullptr || out == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        *out = from<CUlibrary>(kernel->function->module);
        return CUDA_SUCCESS;
    });
}

CUresult cuKernelGetName(const char** out, CUkernel handle) {
    return call(Entry::cuKernelGetName, Need::device, [&](Session&) -> CUresult {
        auto* kernel = to<Kernel>(handle, Tag::kernel);
        if (kernel == nullptr || out == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        *out = kernel->function->name.c_str();
        return CUDA_SUCCESS;
    });
}

CUresult cuKernelGetAttribute(int* value, CUfunction_attribute which, CUkernel handle, CUdevice device) {
    return call(Entry::cuKernelGetAttribute, Need::device, [&](Session&) -> CUresult {
        auto* kernel = to<Kernel>(handle, Tag::kernel);
        if (kernel == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
        return value != nullptr ? read_attribute(*kernel->function, which, value) : CUDA_ERROR_INVALID_VALUE;
    });
}

CUresult cuKernelSetAttribute(CUfunction_attribute which, int value, CUkernel handle, CUdevice device) {
    return call(Entry::cuKernelSetAttribute, Need::device, [&](Session&) -> CUresult {
        auto* kernel = to<Kernel>(handle, Tag::kernel);
        if (kernel == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        return device == 0 ? write_attribute(*kernel->function, which, value) : CUDA_ERROR_INVALID_DEVICE;
    });
}

CUresult cuKernelGetParamInfo(CUkernel handle, std::size_t index, std::size_t* offset, std::size_t* size) {
    return call(Entry::cuKernelGetParamInfo, Need::device, [&](Session&) -> CUresult {
        auto* kernel = to<Kernel>(handle, Tag::kernel);
        return kernel != nullptr ? parameter_info(*kernel->function, index, offset, size) : CUDA_ERROR_INVALID_HANDLE;
    });
}

CUresult cuFuncGetName(const char** out, CUfunction handle) {
    return call(Entry::cuFuncGetName, Need::context, [&](Session&) -> CUresult {
        const Function* function = plain_function(handle);
        if (function == nullptr || out == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        *out = function->name.c_str();
        return CUDA_SUCCESS;
    });
}

CUresult cuFuncGetModule(CUmodule* out, CUfunction handle) {
    return call(Entry::cuFuncGetModule, Need::context, [&](Session&) -> CUresult {
        const Function* function = plain_function(handle);
        if (function == nullptr || out == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        *out = from<CUmodule>(function->module);
        return CUDA_SUCCESS;
    });
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction handle) {
    return call(Entry::cuFuncGetAttribute, Need::context, [&](Session&) -> CUresult {
        const Function* function = plain_function(handle);
        if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        return value != nullptr ? read_attribute(*function, which, value) : CUDA_ERROR_INVALID_VALUE;
    });
}

CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute which, int value) {
    return call(Entry::cuFuncSetAttribute, Need::context, [&](Session&) -> CUresult {
        Function* function = plain_function(handle);
        return function != nullptr ? write_attribute(*function, which, value) : CUDA_ERROR_INVALID_HANDLE;
    });
}

CUresult cuFuncGetParamInfo(CUfunction handle, std::size_t index, std::size_t* offset, std::size_t* size) {
    return call(Entry::cuFuncGetParamInfo, Need::context, [&](Session&) -> CUresult {
        const Function* function = plain_function(handle);
        return function != nullptr ? parameter_info(*function, index, offset, size) : CUDA_ERROR_INVALID_HANDLE;
    });
}

CUresult cuFuncLoad(CUfunction handle) {
    return call(Entry::cuFuncLoad, Need::context, [&](Session&) -> CUresult {
        return plain_function(handle) != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
    });
}

CUresult cuFuncIsLoaded(int* state, CUfunction handle) {
    return call(Entry::cuFuncIsLoaded, Need::context, [&](Session&) -> CUresult {
        if (plain_function(handle) == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        *state = 1;
        return CUDA_SUCCESS;
    });
}

CUresult cuFuncSetCacheConfig(CUfunction handle, int) {
    return call(Entry::cuFuncSetCacheConfig, Need::context, [&](Session&) -> CUresult {
        return plain_function(handle) != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
    });
}

}  // extern "C"
#pragma GCC visibility pop
