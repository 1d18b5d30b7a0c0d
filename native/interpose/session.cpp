#include "session.hpp"

#include "driver.hpp"
#include "log.hpp"
#include "thread.hpp"

#include <pthread.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>

namespace tierline::interpose {

std::atomic<int> g_switch{0};

namespace {

std::atomic<Session*> g_session{nullptr};
std::atomic<bool> g_failed{false};
pthread_mutex_t g_making = PTHREAD_MUTEX_INITIALIZER;

// Dense peak of half-precision matrix units per SM and clock, by compute capability; operations, not multiply-adds.
// Source: NVIDIA's datasheets and tuning guides. An unknown device counts as having no known peak.
double flops_per_sm_clock(int major, int minor) {
    switch (major) {
        case 7: return minor == 5 ? 1024.0 : 1024.0;
        case 8: return minor == 0 ? 2048.0 : 1024.0;
        case 9: return 4096.0;
        case 10: return 8192.0;
        default: return 0.0;
    }
}

int attribute(CUdevice_attribute which, CUdevice device) {
    int value = 0;
    if (driver()->cuDeviceGetAttribute == nullptr) return 0;
    if (driver()->cuDeviceGetAttribute(&value, which, device) != CUDA_SUCCESS) return 0;
    return value;
}

// The device of the current context, from the driver's attributes.
DeviceLimits limits_of(CUdevice device) {
    DeviceLimits limits;
    const int sms = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device);
    if (sms > 0) limits.sms = sms;
    const double clock_hz = 1e3 * attribute(CU_DEVICE_ATTRIBUTE_CLOCK_RATE, device);
    limits.flops_per_s = limits.sms * clock_hz *
                         flops_per_sm_clock(attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device),
                                            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device));
    const double bus_bytes = attribute(CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, device) / 8.0;
    // Two transfers a clock.
    limits.bytes_per_s = 2e3 * attribute(CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, device) * bus_bytes;
    std::size_t memory_bytes = 0;
    if (driver()->cuDeviceTotalMem_v2 != nullptr &&
        driver()->cuDeviceTotalMem_v2(&memory_bytes, device) == CUDA_SUCCESS) {
        limits.memory_bytes = static_cast<std::int64_t>(memory_bytes);
    }
    return limits;
}

MappedRegion make_region(const Settings& settings) {
    Config config;
    config.policy = settings.policy;
    config.mode = settings.mode;
    config.device = settings.device;
    config.resolution_ns = settings.poll_ns;
    if (settings.arbiter.empty()) return MappedRegion::in_memory(config);
    char error[256] = "";
    MappedRegion region = MappedRegion::create(settings.arbiter.c_str(), config, error, sizeof error);
    if (!region) {
        static Once once;
        log_once(once, "%s; launches are not gated", error);
    }
    return region;
}

void at_exit() {
    Session* session = g_session.load(std::memory_order_acquire);
    g_switch.store(2, std::memory_order_relaxed);
    if (session == nullptr) return;
    session->completion.stop();
    for (int number = 0; Client* client = session->client(number); ++number) session->leave(client);
}

// The child has the parent's memory but none of its threads, and no use of its device handles: it starts anew, and the
// old session is left behind as it is (its locks may be held by threads that do not exist here).
void in_child() {
    if (Session* session = g_session.exchange(nullptr, std::memory_order_relaxed)) session->arbiter.forget();
    pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    std::memcpy(&g_making, &fresh, sizeof fresh);
    g_failed.store(false, std::memory_order_relaxed);
    g_lane_generation.fetch_add(1, std::memory_order_relaxed);
    g_kernel_generation.fetch_add(1, std::memory_order_relaxed);
    t_thread.depth = 0;
    t_thread.client_tag = 0;
    t_thread.ticket = 0;
    t_thread.number = 0;
    t_thread.context_known = false;
    ++t_thread.context_serial;
    t_thread.tag = {};
}

Session* make_session(bool without_context) {
    Settings settings = read_settings();
    if (!settings.complaint.empty()) {
        static Once once;
        log_once(once, "%s; the default holds", settings.complaint.c_str());
    }
    int device = -1;
    CUdevice current = 0;
    if (driver()->cuCtxGetDevice != nullptr && driver()->cuCtxGetDevice(&current) == CUDA_SUCCESS) {
        device = current;
        if (!settings.has_device_spec) settings.device = limits_of(current);
    }
    if (device < 0 && without_context && driver()->cuInit != nullptr && driver()->cuInit(0) == CUDA_SUCCESS) {
        device = 0;
        if (!settings.has_device_spec) settings.device = limits_of(0);
    }
    if (device < 0) return nullptr;  // no context yet: this call cannot have work for the device
    MappedRegion region = make_region(settings);
    if (!region) {
        g_failed.store(true, std::memory_order_relaxed);
        return nullptr;
    }
    auto* session = new Session(std::move(settings), std::move(region));
    session->device = device;
    session->arbiter.leave_former_selves();
    session->main_client = session->join(session->settings.client.c_str(), session->settings.priority,
                                         session->settings.memory_cap_bytes);
    if (session->main_client == nullptr) {
        g_failed.store(true, std::memory_order_relaxed);
        delete session;
        return nullptr;
    }
    if (!session->settings.profile.empty()) session->kernels.load_profiles(session->settings.profile);
    static bool registered = false;  // under g_making; once a process and its children
    if (!registered) {
        registered = true;
        pthread_atfork(nullptr, nullptr, in_child);
        std::atexit(at_exit);
    }
    return session;
}

}  // namespace

Session::Session(Settings given, MappedRegion region)
    : settings(std::move(given)), arbiter(std::move(region)) {}

Client* Session::join(const char* label, Priority priority, std::int64_t memory_cap_bytes) {
    const int slot = arbiter.join(label, priority, memory_cap_bytes);
    if (slot < 0) {
        static Once once;
        log_once(once, "the arbiter has no room for another client (%d at most): '%s' is not gated as one of its own",
                 kMaxClients, label);
        return nullptr;
    }
    auto* client = new Client;
    client->slot = slot;
    client->priority = priority;
    client->memory_cap_bytes = memory_cap_bytes;
    const std::lock_guard<std::mutex> guard(mutex_);
    clients_.push_back(client);
    return client;
}

void Session::leave(Client* client) {
    if (client->ended.exchange(true)) return;
    streams.drop_client(client);
    arbiter.leave(client->slot);
}

void Session::iteration_ended(const Client& client) {
    if (client.priority == Priority::high && !client.ended.load()) arbiter.iteration_ended(client.slot);
}

Client* Session::client(int number) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const bool exists = number >= 0 && number < static_cast<int>(clients_.size());
    return exists ? clients_[static_cast<std::size_t>(number)] : nullptr;
}

int Session::number_of(const Client* client) const {
    const std::lock_guard<std::mutex> guard(mutex_);
    for (std::size_t number = 0; number < clients_.size(); ++number) {
        if (clients_[number] == client) return static_cast<int>(number);
    }
    return -1;
}

Client* Session::client_of_thread() {
    Client* tagged = t_thread.client_tag > 0 ? client(t_thread.client_tag - 1) : nullptr;
    return tagged != nullptr && !tagged->ended.load() ? tagged : main_client;
}

Session* session_if_any() noexcept { return g_session.load(std::memory_order_acquire); }

Session* session(bool without_context) noexcept {
    Session* existing = g_session.load(std::memory_order_acquire);
    if (__builtin_expect(existing != nullptr, 1)) return existing;
    if (g_failed.load(std::memory_order_relaxed)) return nullptr;
    pthread_mutex_lock(&g_making);
    existing = g_session.load(std::memory_order_acquire);
    if (existing == nullptr && !g_failed.load(std::memory_order_relaxed)) {
        try {
            existing = make_session(without_context);
        } catch (const std::exception& error) {
            static Once once;
            log_once(once, "no session could be made (%s): launches are not gated", error.what());
            g_failed.store(true, std::memory_order_relaxed);
        }
        g_session.store(existing, std::memory_order_release);
    }
    pthread_mutex_unlock(&g_making);
    return existing;
}

bool look_up_switch() noexcept {
    const char* value = std::getenv("TIERLINE_KERNELS");
    const bool off = value != nullptr && std::strcmp(value, "off") == 0;
    int unknown = 0;
    g_switch.compare_exchange_strong(unknown, off ? 2 : 1, std::memory_order_relaxed);
    return g_switch.load(std::memory_order_relaxed) == 2;
}

RelaxedCapture::RelaxedCapture() {
    const Driver* table = driver();
    if (table == nullptr || table->cuThreadExchangeStreamCaptureMode == nullptr) return;
    exchanged_ = table->cuThreadExchangeStreamCaptureMode(&mode_) == CUDA_SUCCESS;
}

RelaxedCapture::~RelaxedCapture() {
    if (exchanged_) driver()->cuThreadExchangeStreamCaptureMode(&mode_);
}

}  // namespace tierline::interpose
