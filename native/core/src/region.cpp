#include "tierline/region.hpp"

#include "running_set.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <limits>
#include <utility>

namespace tierline {

namespace {

// Fills a region whose bytes are all zero.
void prepare(Region& region, const Config& config, bool shared, std::int32_t manager_pid, Nanoseconds now_ns) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    if (shared) {
        pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
        pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    }
    pthread_mutex_init(&region.mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    region.version = kVersion;
    region.bytes = sizeof(Region);
    region.manager_pid = manager_pid;
    region.config = config;
    region.created_ns = now_ns;
    region.next_look_ns = std::numeric_limits<Nanoseconds>::max();
    for (Shadow& shadow : region.losses.shadows) shadow.kernel = -1;
    // Last, so that a region that is still being made is never taken for a whole one.
    __atomic_store_n(&region.magic, kMagic, __ATOMIC_RELEASE);
}

Nanoseconds monotonic_now() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * kSecond + now.tv_nsec;
}

struct FileDescriptor {
    int value;
    ~FileDescriptor() {
        if (value >= 0) close(value);
    }
};

MappedRegion fail(char* error, std::size_t bytes, const char* what, const char* path, const char* why) {
    std::snprintf(error, bytes, "%s %s: %s", what, path, why);
    return {};
}

}  // namespace

void format(Region& region, const Config& config, bool shared, std::int32_t manager_pid, Nanoseconds now_ns) {
    std::memset(static_cast<void*>(&region), 0, sizeof region);
    prepare(region, config, shared, manager_pid, now_ns);
}

namespace {

// The queue without what a process that died while it put in or took out left half done: entries that have ended, and
// those of an earlier time. Sequence numbers of what is in flight lie in (done, launched] and grow.
void keep_what_is_in_flight(Stream& stream) {
    stream.first %= kQueue;
    std::uint32_t count = std::min<std::uint32_t>(stream.count, kQueue);
    while (count > 0 && queued_at(stream, 0).seq <= stream.done) {
        stream.first = (stream.first + 1) % kQueue;
        --count;
    }
    std::uint64_t newest = stream.done;
    stream.count = 0;
    while (stream.count < count) {
        const std::uint64_t seq = queued_at(stream, stream.count).seq;
        if (seq <= newest || seq > stream.launched) break;
        newest = seq;
        ++stream.count;
    }
}

}  // namespace

void repair(Region& region) {
    region.sm_ppm = region.bw_ppm = 0;
    region.clients_active = region.waiting = region.clients_joined = 0;
    region.busy_streams.fill(0);
    for (Client& client : region.clients) {
        client.sm_ppm = client.bw_ppm = 0;
        client.streams_active = client.waiting = 0;
        client.in_flight_ns = 0;
        if (client.state == 1) ++region.clients_joined;
    }
    region.streams_used = std::clamp(region.streams_used, 0, kMaxStreams);
    for (int slot = 0; slot < region.streams_used; ++slot) {
        Stream& stream = region.streams[slot];
        const bool owned = stream.client >= 0 && stream.client < kMaxClients && region.clients[stream.client].state == 1;
        if (!owned) {
            stream.client = -1;
            stream.count = 0;
        }
        keep_what_is_in_flight(stream);
        stream.peak = {};
        stream.queued_ns = 0;
        if (stream.count == 0) continue;
        Client& client = region.clients[stream.client];
        for (std::uint32_t index = 0; index < stream.count; ++index) {
            const Demand& demand = queued_at(stream, index).demand;
            stream.peak = larger(stream.peak, demand);
            stream.queued_ns += demand.duration_ns;
        }
        region.busy_streams[slot / 64] |= std::uint64_t{1} << (slot % 64);
        if (client.streams_active++ == 0) ++region.clients_active;
        client.in_flight_ns += stream.queued_ns;
        client.sm_ppm += stream.peak.sm_ppm;
        client.bw_ppm += stream.peak.bw_ppm;
        region.sm_ppm += stream.peak.sm_ppm;
        region.bw_ppm += stream.peak.bw_ppm;
    }
    for (Waiter& waiter : region.waiters) {
        if (waiter.state != 1) continue;
        const bool owned = waiter.client >= 0 && waiter.client < kMaxClients && waiter.stream >= 0 &&
                           waiter.stream < region.streams_used &&
                           region.streams[waiter.stream].client == waiter.client;
        if (!owned) {
            waiter.state = 0;
            continue;
        }
        ++region.waiting;
        ++region.clients[waiter.client].waiting;
    }
    for (Shadow& shadow : region.losses.shadows) {  // of streams that are gone, or ended without a word
        if (shadow.stream < 0 || shadow.ends_ns != 0) continue;
        const Stream* stream = shadow.stream < region.streams_used ? &region.streams[shadow.stream] : nullptr;
        const bool runs = stream != nullptr && stream->count > 0 && shadow.seq >= queued_at(*stream, 0).seq &&
                          shadow.seq <= stream->launched;
        if (!runs) shadow.kernel = -1;
    }
    ++region.repairs;
    update_contention(region);
}

MappedRegion MappedRegion::in_memory(const Config& config) {
    void* memory = mmap(nullptr, sizeof(Region), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MappedRegion mapped;
    if (memory == MAP_FAILED) return mapped;
    mapped.region_ = static_cast<Region*>(memory);
    prepare(*mapped.region_, config, false, 0, monotonic_now());
    return mapped;
}

MappedRegion MappedRegion::create(const char* path, const Config& config, char* error, std::size_t error_bytes) {
    const FileDescriptor file{::open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600)};
    if (file.value < 0) {
        if (errno == EEXIST) return open(path, true, error, error_bytes);
        return fail(error, error_bytes, "cannot make the region", path, std::strerror(errno));
    }
    // Allocated, not only sized: a full file system is an error here and no SIGBUS later.
    const int failed = posix_fallocate(file.value, 0, sizeof(Region));
    if (failed != 0) {
        unlink(path);
        return fail(error, error_bytes, "cannot make the region", path, std::strerror(failed));
    }
    void* memory = mmap(nullptr, sizeof(Region), PROT_READ | PROT_WRITE, MAP_SHARED, file.value, 0);
    if (memory == MAP_FAILED) {
        const int reason = errno;
        unlink(path);
        return fail(error, error_bytes, "cannot map the region", path, std::strerror(reason));
    }
    MappedRegion mapped;
    mapped.region_ = static_cast<Region*>(memory);
    prepare(*mapped.region_, config, true, getpid(), monotonic_now());
    return mapped;
}

MappedRegion MappedRegion::open(const char* path, bool writable, char* error, std::size_t error_bytes) {
    const FileDescriptor file{::open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW)};
    if (file.value < 0) return fail(error, error_bytes, "cannot open the region", path, std::strerror(errno));
    // Who comes while another process still makes the region waits for it, a second at most.
    struct stat status {};
    for (int tries = 0; tries < 1000; ++tries) {
        if (fstat(file.value, &status) == 0 && status.st_size >= static_cast<off_t>(sizeof(Region))) break;
        if (status.st_size != 0 && tries > 100) break;
        usleep(1000);
    }
    if (status.st_size != static_cast<off_t>(sizeof(Region))) {
        return fail(error, error_bytes, "cannot use the region", path, "it is not a region of this version of Tierline");
    }
    const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    void* memory = mmap(nullptr, sizeof(Region), protection, MAP_SHARED, file.value, 0);
    if (memory == MAP_FAILED) return fail(error, error_bytes, "cannot map the region", path, std::strerror(errno));
    MappedRegion mapped;
    mapped.region_ = static_cast<Region*>(memory);
    for (int tries = 0; tries < 1000 && __atomic_load_n(&mapped->magic, __ATOMIC_ACQUIRE) == 0; ++tries) usleep(1000);
    if (mapped->magic != kMagic || mapped->version != kVersion || mapped->bytes != sizeof(Region)) {
        return fail(error, error_bytes, "cannot use the region", path, "it is not a region of this version of Tierline");
    }
    return mapped;
}

MappedRegion::MappedRegion(MappedRegion&& other) noexcept : region_(std::exchange(other.region_, nullptr)) {}

MappedRegion& MappedRegion::operator=(MappedRegion&& other) noexcept {
    std::swap(region_, other.region_);
    return *this;
}

MappedRegion::~MappedRegion() {
    if (region_ != nullptr) munmap(region_, sizeof(Region));
}

}  // namespace tierline
