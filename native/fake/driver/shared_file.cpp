#include "shared_file.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace tierline::fakecuda {
namespace {

constexpr std::uint64_t kMagic = 0x32306b61662d6c74;          // changes with the layout
constexpr std::uint64_t kReserved = std::uint64_t{16} << 30;  // address range; the file grows within it
constexpr std::uint64_t kStep = std::uint64_t{4} << 20;

std::int64_t monotonic_ns() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

// Field 22 of /proc/PID/stat; 0 when there is no such process (or it is a zombie, which holds nothing any more).
std::uint64_t start_ticks(std::int32_t pid) {
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/stat", pid);
    const int file = ::open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    char text[1024];
    const ssize_t got = ::read(file, text, sizeof text - 1);
    ::close(file);
    if (got <= 0) return 0;
    text[got] = '\0';
    const char* field = std::strrchr(text, ')');  // the name may hold anything
    if (field == nullptr || field[1] != ' ' || field[2] == 'Z' || field[2] == 'X') return 0;
    field += 2;
    for (int i = 3; i < 22; ++i) {
        field = std::strchr(field, ' ');
        if (field == nullptr) return 0;
        ++field;
    }
    return std::strtoull(field, nullptr, 10);
}

bool alive(const SharedFile::Member& member) {
    return member.pid != 0 && start_ticks(member.pid) == member.start_ticks;
}

void init_lock(pthread_mutex_t& lock) {
    pthread_mutexattr_t kind;
    ::pthread_mutexattr_init(&kind);
    ::pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    ::pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    ::pthread_mutex_init(&lock, &kind);
    ::pthread_mutexattr_destroy(&kind);
}

}  // namespace

std::string SharedFile::join(const std::string& path, const std::string& settings, std::uint64_t state_bytes,
                             bool& fresh) {
    const auto failed = [&](const char* what) { return path + ": " + what + ": " + std::strerror(errno); };
    state_bytes_ = paged(state_bytes);
    const std::uint64_t header_bytes = paged(sizeof(Header));
    fixed_bytes_ = header_bytes + kJournalBytes + 3 * state_bytes_;
    file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file_ < 0) return failed("cannot open the shared device");
    if (::flock(file_, LOCK_EX) != 0) return failed("cannot lock the shared device");
    struct stat about{};
    ::fstat(file_, &about);
    file_bytes_ = static_cast<std::uint64_t>(about.st_size);
    const bool made = file_bytes_ == 0;
    if (!made && file_bytes_ < fixed_bytes_) return path + ": this is no shared device of this version";
    if (!grow(fixed_bytes_)) return failed("cannot size the shared device");
    void* const place = ::mmap(nullptr, kReserved, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file_, 0);
    if (place == MAP_FAILED) return failed("cannot map the shared device");
    char* at = static_cast<char*>(place);
    auto* const header = static_cast<Header*>(place);
    if (!made && header->magic != kMagic && header->magic != 0) {
        ::munmap(place, kReserved);
        return path + ": this is no shared device of this version";
    }
    journal_ = at + header_bytes;
    state_ = journal_ + kJournalBytes;
    copies_[0] = state_ + state_bytes_;
    copies_[1] = copies_[0] + state_bytes_;
    intervals_ = reinterpret_cast<Interval*>(at + fixed_bytes_);
    fresh = true;
    for (const Member& member : header->members) fresh = fresh && !alive(member);
    if (fresh) {
        std::memset(place, 0, fixed_bytes_);
        init_lock(header->lock);
        header->base_real_ns = monotonic_ns();
        header->next_client = 1;
        std::snprintf(header->settings, sizeof header->settings, "%s", settings.c_str());
        header->magic = kMagic;
    }
    header_ = header;
    std::string complaint;
    if (settings != header->settings) {
        complaint = path + ": the device there is '" + header->settings + "', this process wants '" + settings + "'";
    }
    const bool torn = lock();
    for (int i = 0; i < kMembers && slot_ < 0; ++i) {
        if (header->members[i].pid == 0) slot_ = i;
    }
    if (complaint.empty() && slot_ < 0) complaint = path + ": more than 64 processes on one device";
    if (!complaint.empty()) {
        unlock();
        ::flock(file_, LOCK_UN);
        ::munmap(place, kReserved);
        header_ = nullptr;
        return complaint;
    }
    Member& member = header->members[slot_];
    member = Member{};
    member.context = -1;
    member.client = header->next_client++;
    member.start_ticks = start_ticks(::getpid());
    member.pid = ::getpid();
    if (torn) restore();
    return {};
}

void SharedFile::joined() { ::flock(file_, LOCK_UN); }

void SharedFile::leave() { free_slot(slot_); }

bool SharedFile::lock() {
    if (::pthread_mutex_lock(&header_->lock) != EOWNERDEAD) return false;
    ::pthread_mutex_consistent(&header_->lock);
    return true;
}

void SharedFile::unlock() { ::pthread_mutex_unlock(&header_->lock); }

bool SharedFile::grow(std::uint64_t bytes) {
    if (bytes <= file_bytes_) return true;
    struct stat about{};
    if (::fstat(file_, &about) != 0) return false;
    file_bytes_ = static_cast<std::uint64_t>(about.st_size);
    if (bytes <= file_bytes_) return true;
    const std::uint64_t wanted = (bytes + kStep - 1) / kStep * kStep;
    if (wanted > kReserved || ::ftruncate(file_, static_cast<off_t>(wanted)) != 0) return false;
    file_bytes_ = wanted;
    return true;
}

bool SharedFile::journal(const void* record, std::uint32_t size) {
    const std::uint64_t generation = header_->checkpoint.load(std::memory_order_relaxed) >> 1;
    const std::uint64_t tail = header_->tail.load(std::memory_order_relaxed);
    const std::uint64_t place = tail >> 32 == generation ? tail & 0xffffffff : 0;
    const std::uint64_t whole = (sizeof size + size + 7) / 8 * 8;
    if (place + whole > kJournalBytes) return false;
    std::memcpy(journal_ + place, &size, sizeof size);
    std::memcpy(journal_ + place + sizeof size, record, size);
    // The record counts from here on. A process killed before this line has written nothing.
    header_->tail.store(generation << 32 | (place + whole), std::memory_order_release);
    return true;
}

void SharedFile::checkpoint() {
    const std::uint64_t now = header_->checkpoint.load(std::memory_order_relaxed);
    const std::uint64_t other = (now & 1) ^ 1;
    std::memcpy(copies_[other], state_, state_bytes_);
    // 31 bits of generation, as many as the tail has room for. From this line on the journal is empty.
    const std::uint64_t generation = ((now >> 1) + 1) & 0x7fffffff;
    header_->checkpoint.store(generation << 1 | other, std::memory_order_release);
}

void SharedFile::restore() {
    std::memcpy(state_, copies_[header_->checkpoint.load(std::memory_order_acquire) & 1], state_bytes_);
}

const void* SharedFile::record(std::uint64_t& offset, std::uint32_t& size) const {
    const std::uint64_t generation = header_->checkpoint.load(std::memory_order_relaxed) >> 1;
    const std::uint64_t tail = header_->tail.load(std::memory_order_acquire);
    if (tail >> 32 != generation || offset >= (tail & 0xffffffff)) return nullptr;
    const char* const at = journal_ + offset;
    std::memcpy(&size, at, sizeof size);
    offset += (sizeof size + size + 7) / 8 * 8;
    return at + sizeof size;
}

void SharedFile::add_interval(const Interval& interval) {
    const std::uint64_t n = header_->intervals.load(std::memory_order_relaxed);
    if (!grow(fixed_bytes_ + (n + 1) * sizeof(Interval))) return;  // a full disk costs truth, not the program
    intervals_[n] = interval;
    header_->intervals.store(n + 1, std::memory_order_release);
}

int SharedFile::find_dead() const {
    for (int i = 0; i < kMembers; ++i) {
        const Member& member = header_->members[i];
        if (member.pid != 0 && i != slot_ && !alive(member)) return i;
    }
    return -1;
}

}  // namespace tierline::fakecuda
