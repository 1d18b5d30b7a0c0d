// Hooks of cuBLAS, cuBLASLt and cuDNN: they only say, for the thread that calls, what shape its next launches have.
#pragma once

namespace tierline::interpose {

struct TagHook {
    const char* symbol;
    const char* library;  // how the file name of the library that has it begins
    void* ours;
};

// The hook of an exported symbol of these libraries, or null.
const TagHook* tag_hook_of(const char* symbol);

}  // namespace tierline::interpose
