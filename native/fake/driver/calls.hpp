// Counting, error injection and the log of calls.
#pragma once

#include <cstdint>
#include <string>

namespace tierline::fakecuda {

enum class Entry : std::uint16_t {
#define FAKE_ENTRY(base, version, per_thread, symbol) symbol,
#include "entries.def"
#undef FAKE_ENTRY
};

constexpr int kEntries = 0
#define FAKE_ENTRY(base, version, per_thread, symbol) +1
#include "entries.def"
#undef FAKE_ENTRY
    ;

const char* symbol_name(Entry entry);
const char* base_name(Entry entry);

// Counts the call; returns the status that FAKECUDA_FAIL wants for it, else 0.
int count_call(Entry entry);

// Calls of a function so far: of all its forms when `name` is a base name ("cuLaunchKernel"), of one form when it is a
// symbol that is no base name ("cuLaunchKernel_ptsz"). Unknown names: 0.
std::uint64_t calls_of(const char* name);

bool log_enabled();

// One JSON object, built field by field; used only when the log is on.
class JsonLine {
public:
    JsonLine& text(const char* key, const std::string& value);
    JsonLine& number(const char* key, std::int64_t value);
    JsonLine& raw(const char* key, const std::string& value);
    std::string take() const { return "{" + body_ + "}\n"; }

private:
    void key(const char* name);
    std::string body_;
};

// Fields that the running call of this thread wants in its line; its caller starts it afresh for each call.
JsonLine& call_detail();

void log_call(Entry entry, std::int64_t device_ns, int status);
void log_line(const std::string& line);
// At exit: {"summary": {symbol: calls, ...}}.
void log_summary(std::int64_t device_ns);

}  // namespace tierline::fakecuda
