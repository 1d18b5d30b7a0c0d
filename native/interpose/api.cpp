// What Python calls (tierline.kernels.client): several clients in one process.
#include "guarded.hpp"
#include "driver.hpp"
#include "session.hpp"
#include "thread.hpp"

namespace tierline::interpose {

namespace {

Client* client_by(Session& session, int number) {
    Client* client = session.client(number);
    return client != nullptr && !client->ended.load() ? client : nullptr;
}

}  // namespace

}  // namespace tierline::interpose

using namespace tierline::interpose;
using tierline::Priority;

extern "C" {

// Joins a client and makes the calling thread its own: streams that it makes or uses from now on belong to it.
// `priority` 0 high, 1 best effort; `memory_bytes` 0 = no cap. Its number, or -1 (no driver, or no room: told once).
__attribute__((visibility("default"))) int tierline_client_begin(const char* label, int priority,
                                                                 long long memory_bytes) {
    if (switched_off() || label == nullptr || driver() == nullptr) return -1;
    const Inside inside;
    Session* owner = session(true);
    if (owner == nullptr) return -1;
    int number = -1;
    guarded([&] {
        auto* client = owner->join(label, priority == 0 ? Priority::high : Priority::best_effort, memory_bytes);
        if (client == nullptr) return;
        client->tag_before = t_thread.client_tag;
        number = owner->number_of(client);
        t_thread.client_tag = number + 1;
    });
    return number;
}

// Ends the client; all it still had in flight counts as ended. 0, or -1 when there is no such client.
__attribute__((visibility("default"))) int tierline_client_end(int number) {
    const Inside inside;
    Session* session = session_if_any();
    auto* client = session != nullptr ? client_by(*session, number) : nullptr;
    if (client == nullptr) return -1;
    if (t_thread.client_tag == number + 1) t_thread.client_tag = client->tag_before;
    return guarded([&] { session->leave(client); }) ? 0 : -1;
}

// The stream belongs to the client whichever thread launches into it. 0, or -1 when there is no such client.
__attribute__((visibility("default"))) int tierline_bind_stream(void* stream, int number) {
    const Inside inside;
    Session* session = session_if_any();
    auto* client = session != nullptr ? client_by(*session, number) : nullptr;
    if (client == nullptr) return -1;
    return guarded([&] { session->streams.bind(static_cast<CUstream>(stream), client); }) ? 0 : -1;
}
}
