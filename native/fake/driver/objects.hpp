// What the driver's handles point to. Each begins with a tag, so that a handle of another kind, or one that was
// destroyed, is told from a good one; destroyed objects keep their memory until the process ends for that reason.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda.hpp"
#include "tierline/fake/device.hpp"

namespace tierline::fakecuda {

using namespace tierline::fake;  // the engine

enum class Tag : std::uint32_t {
    dead = 0xdeadfa4e,
    context = 0xfa4e0001,
    module,
    library,
    function,
    kernel,
    stream,
    event,
    graph,
    graph_exec,
    node,
    pool,
    green_context,
    resource,
    allocation
};

// Objects that still count or once did. They are never freed, and never lost either: a leak checker finds them here.
// Made and copied under the driver's lock alone.
inline std::vector<const void*>& all_objects() {
    static auto* const once = new std::vector<const void*>;
    return *once;
}

struct Object {
    explicit Object(Tag kind) : tag(kind) { all_objects().push_back(this); }
    Object(const Object& other) : tag(other.tag) { all_objects().push_back(this); }
    Object& operator=(const Object&) = default;
    Tag tag;
};

struct Stream;
struct Capture;
struct Node;
struct Graph;

struct GreenContext;

struct Context : Object {
    Context() : Object(Tag::context) {}
    ContextId engine = -1;
    bool primary = false;
    unsigned flags = 0;
    std::uint64_t id = 0;
    GreenContext* green = nullptr;
    Context* parent = nullptr;  // of a green context: the primary context whose memory it shares
    Stream* legacy = nullptr;   // made at first use
    std::unordered_map<std::uint64_t, Stream*> per_thread;
    std::vector<Stream*> streams;
};

struct GreenContext : Object {
    GreenContext() : Object(Tag::green_context) {}
    Context* context = nullptr;
    std::int32_t first_sm = 0, sm_count = 0;
};

struct Resource : Object {  // a CUdevResourceDesc
    Resource() : Object(Tag::resource) {}
    std::int32_t first_sm = 0, sm_count = 0;
};

struct Function;

struct Module : Object {  // also a CUlibrary: a library here is a module that every context sees
    explicit Module(Tag kind) : Object(kind) {}
    std::vector<std::unique_ptr<Function>> functions;
    Module* module_of_library = nullptr;
};

using Shape = std::array<std::uint32_t, 7>;  // grid, block, dynamic shared memory

struct ShapeHash {
    std::size_t operator()(const Shape& shape) const {
        std::uint64_t h = 1469598103934665603ULL;
        for (const std::uint32_t part : shape) h = (h ^ part) * 1099511628211ULL;
        return static_cast<std::size_t>(h);
    }
};

struct Kernel : Object {  // what a CUkernel points to
    Kernel() : Object(Tag::kernel) {}
    Function* function = nullptr;
};

struct Function : Object {  // what a CUfunction points to
    Function() : Object(Tag::function) {}
    std::string name;
    Module* module = nullptr;
    KernelSpec spec{};
    std::int32_t max_threads = 1024;
    std::int32_t max_dynamic_shared = 48 * 1024;
    std::vector<std::size_t> parameters;  // their sizes
    Kernel as_kernel;
    std::unordered_map<Shape, KernelId, ShapeHash> numbers;  // kernel numbers of the device, by shape of the launch
};

struct Stream : Object {
    Stream() : Object(Tag::stream) {}
    Context* context = nullptr;
    StreamId engine = -1;
    std::uint64_t id = 0;
    unsigned flags = 0;
    int priority = 0;
    bool legacy = false;
    bool per_thread = false;
    GreenContext* green = nullptr;
    OpId last_op = 0;
    std::shared_ptr<Capture> capture;
    std::vector<Node*> tail;  // in capture: what the next operation depends on
};

struct Event : Object {
    Event() : Object(Tag::event) {}
    unsigned flags = 0;
    EventId engine = -1;  // made at the first record
    bool recorded = false;
    std::shared_ptr<Capture> capture;  // of the latest record, when that was inside one
    std::vector<Node*> tail;
};

struct Launch {
    Function* function = nullptr;
    Shape shape{};
    bool cooperative = false;
    bool dependent = false;  // programmatic stream serialisation
    std::array<std::uint32_t, 3> cluster{};
    std::vector<std::uint8_t> arguments;  // read during the call
    std::vector<std::size_t> offsets;
};

struct Node : Object {
    Node() : Object(Tag::node) {}
    CUgraphNodeType type = CU_GRAPH_NODE_TYPE_EMPTY;
    Graph* graph = nullptr;
    std::vector<Node*> after;  // what it depends on
    bool has_dependents = false;
    Launch launch;
    std::vector<void*> argument_pointers;  // handed out by cuGraphKernelNodeGetParams
    std::int64_t bytes = 0;
    Direction direction = Direction::device_to_device;
    CUhostFn host = nullptr;
    void* user_data = nullptr;
    void* destination = nullptr;
    const void* source = nullptr;
    Event* event = nullptr;
    Graph* child = nullptr;
};

struct Graph : Object {
    Graph() : Object(Tag::graph) {}
    std::vector<Node*> nodes;  // in an order that respects the edges: that of creation
};

struct GraphExec : Object {
    GraphExec() : Object(Tag::graph_exec) {}
    std::vector<Node*> nodes;                 // copies of the graph's, in the same order
    std::unordered_map<Node*, Node*> copies;  // graph's node -> its copy here
};

struct Capture {
    std::uint64_t id = 0;
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
    std::uint64_t thread = 0;
    Stream* origin = nullptr;
    Graph* graph = nullptr;
    bool invalidated = false;
    bool ended = false;
    std::vector<Stream*> streams;
    std::vector<Node*> nodes;  // made by this capture
};

struct Pool : Object {
    Pool() : Object(Tag::pool) {}
    std::uint64_t used = 0, used_high = 0, reserved = 0, reserved_high = 0, threshold = 0, most = 0;
};

// One range of addresses. Device memory is host memory that costs nothing until it is touched, so that copies do move
// data.
struct Allocation {
    std::size_t bytes = 0;
    std::size_t mapped = 0;
    Pool* pool = nullptr;
    bool host = false;
    bool reserved = false;  // by cuMemAddressReserve: counts only through its handles
};

struct PhysicalMemory : Object {  // what cuMemCreate makes
    PhysicalMemory() : Object(Tag::allocation) {}
    std::size_t bytes = 0;
    int references = 1;
};

template <class T, class Handle>
T* to(Handle handle, Tag tag) {
    auto* object = reinterpret_cast<Object*>(handle);
    return object != nullptr && object->tag == tag ? static_cast<T*>(object) : nullptr;
}

template <class Handle>
Handle from(Object* object) {
    return reinterpret_cast<Handle>(object);
}

}  // namespace tierline::fakecuda
