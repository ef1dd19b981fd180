// Feeds: replay, reception of multicast lines, and the decoder of lines alone (captures, tests).
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "bindings/arrays.hpp"
#include "bindings/bindings.hpp"
#include "bindings/record_arrays.hpp"
#include "feed/pacer.hpp"
#include "feed/receiver.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace strikeforge {

namespace {

Pace pace_of(const std::string& kind, double value) {
    const bool full = kind == "full";
    if (!full && kind != "scaled" && kind != "fixed")
        throw std::invalid_argument("pace '" + kind + "' isn't known: full, scaled, fixed");
    if (!full && !(value > 0 && value <= 1e12))
        throw std::invalid_argument("pace: expected a positive number, found " + std::to_string(value));
    return {full ? PaceKind::full : kind == "scaled" ? PaceKind::scaled : PaceKind::fixed, value};
}

nb::object schedule(nb::handle source, const std::string& kind, double value, std::int64_t start_ns) {
    const RecordsOf records = records_of(source);
    Schedule arrivals(pace_of(kind, value));
    std::int64_t* out;
    nb::object array = new_int64(records.count, &out);
    std::int64_t arrival_ns = start_ns;
    for (size_t at = 0; at < records.count; ++at) {
        if (at == 0 || begins_event(records.data[at].header))
            arrival_ns = start_ns + arrivals.next(records.data[at].header.event_ns);
        out[at] = arrival_ns;
    }
    return array;
}

nb::dict replay(Pacer& pacer, RingWriter& ring, nb::handle array, const std::string& kind, double value,
                std::int64_t start_ns, bool busy) {
    const RecordsOf records = records_of(array);
    const Pace pace = pace_of(kind, value);
    RingSink sink(ring, pacer.stopped());
    Pacer::Result result;
    {
        nb::gil_scoped_release release;
        result = pacer.run(records.data, records.count, pace, start_ns, busy, sink);
    }
    nb::dict out;
    out["records"] = result.records;
    out["events"] = result.events;
    out["start_ns"] = result.start_ns;
    out["latest_ns"] = result.latest_ns;
    return out;
}

ArbiterOptions arbiter_options(const std::map<std::string, std::int64_t>& told) {
    ArbiterOptions options;
    for (const auto& [name, value] : told) {
        const auto number = static_cast<std::uint64_t>(value);
        if (value < 0) throw std::invalid_argument(name + ": expected 0 or more, found " + std::to_string(value));
        if (name == "capacity")
            options.capacity = number;
        else if (name == "reorder_records")
            options.reorder_records = number;
        else if (name == "reorder_ns")
            options.reorder_ns = value;
        else if (name == "recovery_ns")
            options.recovery_ns = value;
        else if (name == "jump_records")
            options.jump_records = number;
        else if (name == "jump_frames")
            options.jump_frames = static_cast<std::uint32_t>(number);
        else if (name == "session")
            options.session = number;
        else if (name == "first")
            options.first = number;
        else
            throw std::invalid_argument("option '" + name + "' isn't known");
    }
    return options;
}

nb::object range_of(const MissingRange& range) {
    return nb::make_tuple(range.session, range.first, range.count);
}

struct Collected final : RecordSink {
    std::vector<Record> records;
    bool take(const Record& record) override {
        records.push_back(record);
        return true;
    }
};

// Datagrams of any lines to the records of the stream, without a network.
struct BoundStream {
    Collected collected;
    Arbiter arbiter;

    explicit BoundStream(const std::map<std::string, std::int64_t>& options)
        : arbiter(arbiter_options(options), collected) {}

    std::string datagram(const nb::bytes& data, std::int64_t arrival_ns, std::int64_t now_ns) {
        Frame frame;
        const FrameProblem problem =
            parse_frame(reinterpret_cast<const std::uint8_t*>(data.c_str()), data.size(), frame);
        if (problem == FrameProblem::none) arbiter.frame(frame, arrival_ns, now_ns);
        return problem_name(problem);
    }
    void recovered(std::uint64_t session, std::uint64_t first, nb::handle array, std::int64_t now_ns) {
        const RecordsOf records = records_of(array);
        for (size_t at = 0; at < records.count; ++at) arbiter.recovered(session, first + at, records.data[at], now_ns);
    }
    nb::object request() {
        MissingRange range;
        return arbiter.request(range) ? range_of(range) : nb::none();
    }
    nb::bytes take() {
        nb::bytes out(collected.records.data(), collected.records.size() * record_bytes);
        collected.records.clear();
        return out;
    }
};

std::unique_ptr<Receiver> make_receiver(const std::string& kind,
                                        const std::vector<std::map<std::string, std::string>>& told,
                                        const std::map<std::string, std::int64_t>& options, int receive_buffer_bytes,
                                        bool busy, bool until_end) {
    std::vector<Line> lines;
    for (const auto& line : told)
        lines.push_back(
            {line.at("group"), static_cast<std::uint16_t>(std::stoul(line.at("port"))), line.at("interface")});
    const ArbiterOptions arbiter = arbiter_options(options);
    auto source =
        kind == "packet" ? open_packet_rings(lines, receive_buffer_bytes) : open_udp_lines(lines, receive_buffer_bytes);
    return std::make_unique<Receiver>(std::move(source), arbiter, ReceiverOptions{busy, until_end});
}

void receive(Receiver& receiver, RingWriter& ring) {
    nb::gil_scoped_release release;
    RingSink sink(ring, receiver.stopped());
    receiver.run(sink);
}

nb::object wait_request(Receiver& receiver, std::int64_t timeout_us) {
    MissingRange range;
    bool asked;
    {
        nb::gil_scoped_release release;
        asked = receiver.wait_request(range, timeout_us);
    }
    return asked ? range_of(range) : nb::none();
}

void give(Receiver& receiver, std::uint64_t session, std::uint64_t first, nb::handle array) {
    const RecordsOf records = records_of(array);
    receiver.give(session, first, records.data, records.count);
}

}  // namespace

void bind_feed(nb::module_& module) {
    module.attr("FRAME_HEADER_BYTES") = frame_header_bytes;
    module.attr("MOST_FRAME_RECORDS") = most_frame_records;
    module.def("feed_schedule", schedule, "records"_a, "pace"_a, "value"_a, "start_ns"_a);

    nb::class_<Pacer>(module, "Pacer")
        .def(nb::init<>())
        .def("run", replay, "ring"_a, "records"_a, "pace"_a, "value"_a, "start_ns"_a, "busy"_a)
        .def("stop", &Pacer::stop);

    nb::class_<BoundStream>(module, "FrameStream")
        .def(nb::init<const std::map<std::string, std::int64_t>&>(), "options"_a)
        .def("datagram", &BoundStream::datagram, "data"_a, "arrival_ns"_a, "now_ns"_a)
        .def("recovered", &BoundStream::recovered, "session"_a, "first"_a, "records"_a, "now_ns"_a)
        .def(
            "unavailable",
            [](BoundStream& stream, std::uint64_t session, std::uint64_t first, std::uint64_t count,
               std::int64_t now_ns) { stream.arbiter.unavailable({session, first, count}, now_ns); },
            "session"_a, "first"_a, "count"_a, "now_ns"_a)
        .def(
            "tick", [](BoundStream& stream, std::int64_t now_ns) { stream.arbiter.tick(now_ns); }, "now_ns"_a)
        .def("request", &BoundStream::request)
        .def("finish", [](BoundStream& stream) { stream.arbiter.finish(); })
        .def("take", &BoundStream::take)
        .def_prop_ro("ended", [](const BoundStream& stream) { return stream.arbiter.ended(); })
        .def_prop_ro("counts", [](const BoundStream& stream) { return named(stream.arbiter.counts()); });

    nb::class_<Receiver>(module, "Receiver")
        .def("run", receive, "ring"_a)
        .def("stop", &Receiver::stop)
        .def("wait_request", wait_request, "timeout_us"_a)
        .def("give", give, "session"_a, "first"_a, "records"_a)
        .def(
            "cannot",
            [](Receiver& receiver, std::uint64_t session, std::uint64_t first, std::uint64_t count) {
                receiver.cannot({session, first, count});
            },
            "session"_a, "first"_a, "count"_a)
        .def_prop_ro("running", &Receiver::running)
        .def_prop_ro("counts", &Receiver::counts);
    module.def("open_receiver", make_receiver, "kind"_a, "lines"_a, "options"_a, "receive_buffer_bytes"_a, "busy"_a,
               "until_end"_a);
}

}  // namespace strikeforge
