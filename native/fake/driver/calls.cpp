#include "calls.hpp"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstring>

#include "config.hpp"

namespace tierline::fakecuda {
namespace {

constexpr const char* kSymbols[] = {
#define FAKE_ENTRY(base, version, per_thread, symbol) #symbol,
#include "entries.def"
#undef FAKE_ENTRY
};

constexpr const char* kBases[] = {
#define FAKE_ENTRY(base, version, per_thread, symbol) #base,
#include "entries.def"
#undef FAKE_ENTRY
};

std::array<std::atomic<std::uint64_t>, kEntries> g_calls{};

std::size_t index(Entry entry) { return static_cast<std::size_t>(entry); }

int log_file() {
    static const int file =
        config().log.empty() ? -1 : ::open(config().log.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    return file;
}

long thread_id() {
    static thread_local const long id = ::syscall(SYS_gettid);
    return id;
}

}  // namespace

const char* symbol_name(Entry entry) { return kSymbols[index(entry)]; }
const char* base_name(Entry entry) { return kBases[index(entry)]; }

int count_call(Entry entry) {
    const std::uint64_t now = g_calls[index(entry)].fetch_add(1, std::memory_order_relaxed) + 1;
    if (config().failures.empty()) return 0;
    for (const Failure& failure : config().failures) {
        // Named by its base name a failure counts the calls of all forms, as a user thinks of them.
        if (failure.function == kSymbols[index(entry)]) {
            if (failure.call == 0 || failure.call == now) return failure.status;
        } else if (failure.function == kBases[index(entry)]) {
            if (failure.call == 0 || failure.call == calls_of(kBases[index(entry)])) return failure.status;
        }
    }
    return 0;
}

std::uint64_t calls_of(const char* name) {
    std::uint64_t forms = 0;
    std::uint64_t exact = 0;
    bool is_base = false;
    for (std::size_t i = 0; i < kEntries; ++i) {
        const std::uint64_t calls = g_calls[i].load(std::memory_order_relaxed);
        if (std::strcmp(kBases[i], name) == 0) {
            forms += calls;
            is_base = true;
        }
        if (std::strcmp(kSymbols[i], name) == 0) exact = calls;
    }
    return is_base ? forms : exact;
}

bool log_enabled() {
    static const bool enabled = log_file() >= 0;
    return enabled;
}

void JsonLine::key(const char* name) {
    if (!body_.empty()) body_ += ", ";
    body_ += '"';
    body_ += name;
    body_ += "\": ";
}

JsonLine& JsonLine::text(const char* name, const std::string& value) {
    key(name);
    body_ += '"';
    for (const char c : value) {
        if (c == '"' || c == '\\') {
            body_ += '\\';
            body_ += c;
        } else if (static_cast<unsigned char>(c) < 0x20) {
            char escaped[8];
            std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned char>(c));
            body_ += escaped;
        } else {
            body_ += c;
        }
    }
    body_ += '"';
    return *this;
}

JsonLine& JsonLine::number(const char* name, std::int64_t value) {
    key(name);
    body_ += std::to_string(value);
    return *this;
}

JsonLine& JsonLine::raw(const char* name, const std::string& value) {
    key(name);
    body_ += value;
    return *this;
}

JsonLine& call_detail() {
    static thread_local JsonLine detail;
    return detail;
}

void log_line(const std::string& line) {
    if (!log_enabled()) return;
    // One write to a file opened with O_APPEND: whole lines even when several processes log.
    if (::write(log_file(), line.data(), line.size()) < 0) return;  // a full disk must not disturb the program
}

void log_call(Entry entry, std::int64_t device_ns, int status) {
    if (!log_enabled()) return;
    JsonLine& detail = call_detail();
    detail.text("call", base_name(entry))
        .text("symbol", symbol_name(entry))
        .number("rc", status)
        .number("t_ns", device_ns)
        .number("pid", ::getpid())
        .number("tid", thread_id());
    log_line(detail.take());
    detail = JsonLine();
}

void log_summary(std::int64_t device_ns) {
    if (!log_enabled()) return;
    JsonLine calls;
    for (std::size_t i = 0; i < kEntries; ++i) {
        const std::uint64_t n = g_calls[i].load(std::memory_order_relaxed);
        if (n > 0) calls.number(kSymbols[i], static_cast<std::int64_t>(n));
    }
    std::string body = calls.take();
    body.pop_back();  // the line's end
    JsonLine line;
    line.raw("summary", body).number("t_ns", device_ns).number("pid", ::getpid());
    log_line(line.take());
}

}  // namespace tierline::fakecuda
