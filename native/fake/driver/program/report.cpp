#include "report.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>

namespace tierline::fake {
namespace {

volatile std::sig_atomic_t g_stop = 0;

void on_stop(int) { g_stop = 1; }

const char* variable(const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr && *value != '\0' ? value : nullptr;
}

std::string checkpoint_path() {
    const char* folder = variable("TIERLINE_CHECKPOINT_DIR");
    return folder != nullptr ? std::string(folder) + "/fake-program.step" : std::string();
}

}  // namespace

void report(std::int64_t step, double loss) {
    const char* path = variable("TIERLINE_REPORT_FILE");
    if (path == nullptr) return;
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    char line[160];
    const int length = std::snprintf(line, sizeof line, "{\"step\": %lld, \"loss\": %.9g, \"time_ns\": %lld}\n",
                                     static_cast<long long>(step), loss,
                                     static_cast<long long>(now.tv_sec) * 1'000'000'000 + now.tv_nsec);
    static const int file = ::open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    // A full disk never stops the work: the report is lost.
    if (file < 0 || ::write(file, line, static_cast<std::size_t>(length)) < 0) return;
}

bool should_stop() {
    if (g_stop != 0) return true;
    const char* path = variable("TIERLINE_REPORT_FILE");
    if (path == nullptr) return false;
    const char* attempt = variable("TIERLINE_ATTEMPT");
    const std::string file = path;
    const auto slash = file.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : file.substr(0, slash);
    return ::access((folder + "/attempt-" + (attempt != nullptr ? attempt : "1") + "/stop").c_str(), F_OK) == 0;
}

void watch_for_stop() {
    struct sigaction action{};
    action.sa_handler = on_stop;
    ::sigaction(SIGTERM, &action, nullptr);
}

std::int64_t resumed_step() {
    const std::string path = checkpoint_path();
    const char* resume = variable("TIERLINE_RESUME");
    if (path.empty() || resume == nullptr || std::strcmp(resume, "1") != 0) return 0;
    std::FILE* file = std::fopen(path.c_str(), "r");
    if (file == nullptr) return 0;
    long long step = 0;
    if (std::fscanf(file, "%lld", &step) != 1) step = 0;
    std::fclose(file);
    return step;
}

void save_step(std::int64_t step) {
    const std::string path = checkpoint_path();
    if (path.empty()) return;
    const std::string partial = path + ".partial";
    std::FILE* file = std::fopen(partial.c_str(), "w");
    if (file == nullptr) return;
    std::fprintf(file, "%lld\n", static_cast<long long>(step));
    if (std::fclose(file) == 0) std::rename(partial.c_str(), path.c_str());
}

}  // namespace tierline::fake
