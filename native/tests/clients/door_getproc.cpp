// The third door: cuGetProcAddress, in both forms, for several names, versions and flags.
#include <vector>

#include "found.hpp"

namespace {

using First = CUresult (*)(const char*, void**, int, cuuint64_t);
using Second = CUresult (*)(const char*, void**, int, cuuint64_t, CUdriverProcAddressQueryResult*);

struct Question {
    const char* name;
    int version;
    cuuint64_t flags;
};

const Question kQuestions[] = {
    {"cuLaunchKernel", 13000, 0},
    {"cuLaunchKernel", 12000, CU_GET_PROC_ADDRESS_LEGACY_STREAM},
    {"cuLaunchKernel", 12000, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM},
    {"cuLaunchKernel", 4000, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM},
    {"cuLaunchKernel", 3000, 0},
    {"cuLaunchKernelEx", 11050, 0},
    {"cuLaunchKernelEx", 11060, 0},
    {"cuMemAlloc", 12000, 0},
    {"cuMemAlloc", 2000, 0},
    {"cuStreamBeginCapture", 10000, 0},
    {"cuStreamBeginCapture", 10010, 0},
    {"cuStreamSynchronize", 13000, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM},
    {"cuStreamGetCaptureInfo", 11030, 0},
    {"cuGraphKernelNodeGetParams", 10000, 0},
    {"cuGraphKernelNodeGetParams", 12000, 0},
    {"cuEventDestroy", 2000, 0},
    {"cuGetProcAddress", 11030, 0},
    {"cuGetProcAddress", 12000, 0},
    {"cuGetExportTable", 12000, 0},
    {"cuNoSuchFunction", 13000, 0},
    {"cuLaunchKernel", 99000, 0},
    {"cuLaunchKernel", 12000, 3},
    {"cuLaunchKernel", 12000, 8},
};

template <class Function>
Function as(void* address) {
    Function out = nullptr;
    std::memcpy(&out, &address, sizeof out);
    return out;
}

}  // namespace

int main(int count, char** values) {
    void* const library = client::open_driver();
    auto first = as<First>(::dlsym(library, "cuGetProcAddress"));
    auto second = as<Second>(::dlsym(library, "cuGetProcAddress_v2"));
    if (first == nullptr || second == nullptr) client::fail("cuGetProcAddress", 0);
    std::printf("{\"door\": \"getproc\", \"answers\": [");
    const char* separator = "";
    for (const Question& question : kQuestions) {
        void* old_answer = reinterpret_cast<void*>(1);
        void* answer = reinterpret_cast<void*>(1);
        auto status = static_cast<CUdriverProcAddressQueryResult>(3);  // none that there is
        const int old_rc = first(question.name, &old_answer, question.version, question.flags);
        const int rc = second(question.name, &answer, question.version, question.flags, &status);
        const bool untouched = answer == reinterpret_cast<void*>(1);
        std::printf(
            "%s\n{\"name\": \"%s\", \"version\": %d, \"flags\": %llu, \"rc\": %d, \"status\": %d, \"symbol\": \"%s\", "
            "\"object\": \"%s\", \"untouched\": %s, \"first_rc\": %d, \"same\": %s}",
            separator, question.name, question.version, static_cast<unsigned long long>(question.flags), rc, status,
            untouched ? "" : client::symbol_of(answer).c_str(),
            untouched ? "" : client::object_of(static_cast<char*>(answer)).c_str(), untouched ? "true" : "false",
            old_rc, answer == old_answer ? "true" : "false");
        separator = ",";
    }
    // Launches through what the second form gives; --nested asks it for itself first, --per-thread wants those forms.
    if (client::flag(count, values, "--nested")) {
        void* inner = nullptr;
        CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
        client::must(second("cuGetProcAddress", &inner, 12000, 0, &status), "cuGetProcAddress");
        second = as<Second>(inner);
    }
    const bool old_form = client::flag(count, values, "--first");
    const bool per_thread = client::flag(count, values, "--per-thread");
    const cuuint64_t flags = per_thread ? CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM : CU_GET_PROC_ADDRESS_DEFAULT;
    const client::Found driver([&](const char* name) -> void* {
        void* out = nullptr;
        CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SUCCESS;
        if (old_form)
            client::must(first(name, &out, 12000, flags), name);
        else
            client::must(second(name, &out, 12000, flags, &status), name);
        return out;
    });
    driver.run(3, !per_thread);
    std::printf("], \"object\": \"%s\"}\n", client::object_of(driver.launch).c_str());
    return 0;
}
