#include "log.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

namespace tierline::interpose {

void log_once(Once& once, const char* format, ...) noexcept {
    if (once.said.exchange(true, std::memory_order_relaxed)) return;
    char line[512];
    int length = std::snprintf(line, sizeof line, "tierline (pid %d): ", static_cast<int>(getpid()));
    va_list arguments;
    va_start(arguments, format);
    length += std::vsnprintf(line + length, sizeof line - static_cast<std::size_t>(length) - 1, format, arguments);
    va_end(arguments);
    if (length > static_cast<int>(sizeof line) - 2) length = static_cast<int>(sizeof line) - 2;
    line[length++] = '\n';
    const char* path = std::getenv("TIERLINE_LOG");
    const bool named = path != nullptr && *path != '\0';
    const int file = named ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
    // One write a line, so that lines of several processes do not mix; nothing can be done when it fails.
    const ssize_t written = write(file >= 0 ? file : STDERR_FILENO, line, static_cast<std::size_t>(length));
    static_cast<void>(written);
    if (file >= 0) close(file);
}

}  // namespace tierline::interpose
