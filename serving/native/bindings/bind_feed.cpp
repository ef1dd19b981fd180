// Feeds: replay (here), and what receives from the network (bind_receiver.cpp).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "bindings/arrays.hpp"
#include "bindings/bindings.hpp"
#include "bindings/feed_arrays.hpp"
#include "feed/pacer.hpp"

namespace nb = nanobind;

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

nb::object schedule(const RecordBytes& bytes, const std::string& kind, double value, std::int64_t start_ns) {
    const RecordSpan records = records_of(bytes);
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

nb::dict run(Pacer& pacer, RingWriter& ring, const RecordBytes& bytes, const std::string& kind, double value,
             std::int64_t start_ns, bool busy) {
    const RecordSpan records = records_of(bytes);
    const Pace pace = pace_of(kind, value);
    RingSink sink(ring);
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

}  // namespace

void bind_feed(nb::module_& module) {
    module.def("feed_schedule", schedule, nb::arg("records"), nb::arg("pace"), nb::arg("value"), nb::arg("start_ns"));
    nb::class_<Pacer>(module, "Pacer")
        .def(nb::init<>())
        .def("run", run, nb::arg("ring"), nb::arg("records"), nb::arg("pace"), nb::arg("value"), nb::arg("start_ns"),
             nb::arg("busy"))
        .def("stop", &Pacer::stop);
}

}  // namespace strikeforge
