// Rings of records and the layout of a record. Arrays of records cross by reference (record_arrays.hpp). What may wait
// gives the interpreter's lock away, and lets Python's signal handlers run every 50 ms.
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <nanobind/stl/string.h>
#include <numpy/arrayobject.h>

#include <algorithm>
#include <string>

#include "bindings/arrays.hpp"
#include "bindings/bindings.hpp"
#include "bindings/record_arrays.hpp"
#include "transport/ring.hpp"
#include "transport/ring_layout.hpp"
#include "transport/ring_timing.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace strikeforge {

namespace {

constexpr std::int64_t signals_every_us = 50'000;

PyArrayObject* record_array(nb::handle object, bool written) {
    if (PyArray_Check(object.ptr())) {
        auto* array = reinterpret_cast<PyArrayObject*>(object.ptr());
        const bool fits = written ? PyArray_ISCARRAY(array) : PyArray_ISCARRAY_RO(array);
        if (PyArray_TYPE(array) == NPY_VOID && PyArray_ITEMSIZE(array) == static_cast<npy_intp>(record_bytes) &&
            PyArray_NDIM(array) <= 1 && fits)
            return array;
    }
    const nb::str type = nb::type_name(object.type());
    std::string found = type.c_str();
    if (nb::hasattr(object, "dtype")) {
        const nb::str dtype = nb::repr(nb::object(object.attr("dtype")));
        const nb::str shape = nb::repr(nb::object(object.attr("shape")));
        found += std::string(" of ") + dtype.c_str() + ", shape " + shape.c_str();
    }
    throw RingProblem("records: expected a C-contiguous, aligned" + std::string(written ? ", writable" : "") +
                      " array [] or [N] of serving.host.records.RECORD or one of its views, found " + found);
}

template <class End>
End& usable(End& end) {
    if (end.left_behind())
        throw RingProblem("ring: opened before fork(), so it belongs to the parent process: open it in the child");
    return end;
}

// `wait_us(slice)` until it is true or the time is over; Ctrl-C and other handlers get their turn.
template <class Wait>
bool waited(std::int64_t timeout_us, Wait wait_us) {
    for (std::int64_t left = timeout_us;;) {
        const std::int64_t slice = std::clamp<std::int64_t>(left, 0, signals_every_us);
        bool done = false;
        {
            nb::gil_scoped_release released;
            done = wait_us(slice);
        }
        if (done) return true;
        if (PyErr_CheckSignals() != 0) throw nb::python_error();
        left -= slice;
        if (left <= 0) return false;
    }
}

void write(RingWriter& writer, nb::handle array) {
    usable(writer);
    const RecordsOf records = records_of(array);
    for (size_t place = 0; place < records.count; ++place) {
        while (!writer.room(0)) waited(signals_every_us, [&](std::int64_t us) { return writer.room(us); });
        writer.write(records.data[place]);
    }
}

nb::object slots(nb::handle reader) {
    const auto& self = nb::cast<const RingReader&>(reader);
    npy_intp shape = static_cast<npy_intp>(self.capacity() * sizeof(ring::Slot));
    nb::object array = nb::steal(PyArray_SimpleNewFromData(1, &shape, NPY_UINT8, const_cast<std::byte*>(self.slots())));
    if (!array.is_valid()) throw nb::python_error();
    auto* plain = reinterpret_cast<PyArrayObject*>(array.ptr());
    PyArray_CLEARFLAGS(plain, NPY_ARRAY_WRITEABLE);
    if (PyArray_SetBaseObject(plain, nb::object(nb::borrow(reader)).release().ptr()) != 0) throw nb::python_error();
    return array;
}

template <class Field>
const char* format_of() {
    if constexpr (std::is_same_v<Field, double>) return "f8";
    if constexpr (std::is_same_v<Field, std::int64_t>) return "i8";
    if constexpr (std::is_same_v<Field, std::uint64_t>) return "u8";
    if constexpr (std::is_same_v<Field, std::uint32_t>) return "u4";
    if constexpr (std::is_same_v<Field, std::uint16_t>) return "u2";
    if constexpr (sizeof(Field) == 1) return "u1";
    if constexpr (std::is_same_v<Field, double[4]>) return "(4,)f8";
}

#define FIELD(shape, name) fields[#name] = nb::make_tuple(format_of<decltype(shape::name)>(), offsetof(shape, name))

nb::dict header_fields() {
    nb::dict fields;
    FIELD(RecordHeader, event_ns);
    FIELD(RecordHeader, sequence);
    FIELD(RecordHeader, instrument);
    FIELD(RecordHeader, kind);
    FIELD(RecordHeader, flags);
    return fields;
}

// By shape: field -> (NumPy format, offset), the header's fields first.
nb::dict record_layout() {
    nb::dict shapes;
    const auto add = [&](const char* name, auto fill) {
        nb::dict fields = header_fields();
        fill(fields);
        shapes[name] = fields;
    };
    add("TRADE", [](nb::dict& fields) {
        FIELD(Trade, price);
        FIELD(Trade, size);
        FIELD(Trade, arrival_ns);
    });
    add("QUOTE", [](nb::dict& fields) {
        FIELD(Quote, bid);
        FIELD(Quote, bid_size);
        FIELD(Quote, ask);
        FIELD(Quote, ask_size);
        FIELD(Quote, arrival_ns);
    });
    add("ORDER", [](nb::dict& fields) {
        FIELD(Order, order_id);
        FIELD(Order, price);
        FIELD(Order, quantity);
        FIELD(Order, arrival_ns);
        FIELD(Order, sent_ns);
    });
    add("FILL", [](nb::dict& fields) {
        FIELD(Fill, order_id);
        FIELD(Fill, price);
        FIELD(Fill, quantity);
        FIELD(Fill, underlying);
        FIELD(Fill, arrival_ns);
    });
    add("SIGNAL", [](nb::dict& fields) {
        FIELD(Signal, value);
        FIELD(Signal, arrival_ns);
    });
    add("CONTROL", [](nb::dict& fields) {
        FIELD(Control, value);
        FIELD(Control, arrival_ns);
    });
    add("RECORD", [](nb::dict& fields) { fields["values"] = nb::make_tuple("(5,)f8", sizeof(RecordHeader)); });
    return shapes;
}

#undef FIELD

nb::dict record_constants() {
    nb::dict kinds, sides, takers, orders, all;
    kinds["NONE"] = static_cast<int>(Kind::none);
    kinds["TRADE"] = static_cast<int>(Kind::trade);
    kinds["QUOTE"] = static_cast<int>(Kind::quote);
    kinds["LEVEL"] = static_cast<int>(Kind::level);
    kinds["HEARTBEAT"] = static_cast<int>(Kind::heartbeat);
    kinds["ORDER"] = static_cast<int>(Kind::order);
    kinds["FILL"] = static_cast<int>(Kind::fill);
    kinds["SIGNAL"] = static_cast<int>(Kind::signal);
    kinds["CONTROL"] = static_cast<int>(Kind::control);
    sides["HAS_BID"] = has_bid;
    sides["HAS_ASK"] = has_ask;
    sides["FIRST"] = first;
    sides["LAST"] = last;
    takers["BUYER_TOOK"] = buyer_took;
    takers["SELLER_TOOK"] = seller_took;
    orders["IS_BUY"] = is_buy;
    orders["IS_NEW"] = is_new;
    orders["IS_REPLACE"] = is_replace;
    orders["IS_CANCEL"] = is_cancel;
    all["Kind"] = kinds;
    all["QuoteFlags"] = sides;
    all["TradeFlags"] = takers;
    all["OrderFlags"] = orders;
    all["LEVEL_SHIFT"] = level_shift;
    return all;
}

}  // namespace

RecordsOf records_of(nb::handle object) {
    PyArrayObject* array = record_array(object, false);
    return {static_cast<const Record*>(PyArray_DATA(array)), static_cast<size_t>(PyArray_SIZE(array))};
}

WrittenRecordsOf written_records_of(nb::handle object) {
    PyArrayObject* array = record_array(object, true);
    return {static_cast<Record*>(PyArray_DATA(array)), static_cast<size_t>(PyArray_SIZE(array))};
}

void bind_transport(nb::module_& module) {
    if (PyArray_ImportNumPyAPI() < 0) throw nb::python_error();
    module.attr("RECORD_BYTES") = record_bytes;
    module.attr("SLOT_BYTES") = sizeof(ring::Slot);
    module.attr("SLOT_RECORD_OFFSET") = offsetof(ring::Slot, words);
    module.attr("RING_HEADER_BYTES") = ring::header_bytes;
    module.def("record_layout", record_layout);
    module.def("record_constants", record_constants);

    nb::class_<RingWriter>(module, "RingWriter")
        .def(nb::init<const std::string&, std::uint64_t, bool>(), "path"_a, "capacity"_a, "lossless"_a,
             nb::call_guard<nb::gil_scoped_release>())
        .def("write", write, "records"_a.none())
        .def(
            "send_stamped",
            [](RingWriter& writer, std::uint64_t count, std::int64_t interval_ns) {
                nb::gil_scoped_release released;
                return send_stamped(writer, count, interval_ns);
            },
            "count"_a, "interval_ns"_a)
        .def_prop_ro("written", &RingWriter::written)
        .def_prop_ro("waits", &RingWriter::waits)
        .def_prop_ro("writers", &RingWriter::writers)
        .def_prop_ro("capacity", &RingWriter::capacity);

    nb::class_<RingReader>(module, "RingReader")
        .def(nb::init<const std::string&, const std::string&, bool>(), "path"_a, "name"_a, "lossless"_a,
             nb::call_guard<nb::gil_scoped_release>())
        .def(
            "read",
            [](RingReader& reader, nb::handle out) {
                const WrittenRecordsOf records = written_records_of(out);
                return usable(reader).read_many(records.data, records.count);
            },
            "out"_a.none())
        .def(
            "wait",
            [](RingReader& reader, std::int64_t timeout_us) {
                usable(reader);
                return waited(timeout_us, [&](std::int64_t us) { return reader.wait_until_ready(us); });
            },
            "timeout_us"_a)
        .def("leave", &RingReader::leave)
        .def("slots", slots)
        .def("still_there", &RingReader::still_there, "first"_a, "count"_a)
        .def(
            "skip", [](RingReader& reader, std::uint64_t count) { usable(reader).skip(count); }, "count"_a)
        .def(
            "receive_stamped",
            [](RingReader& reader, std::uint64_t count, bool latencies, std::int64_t patience_ns) {
                std::int64_t* each = nullptr;
                nb::object found = latencies ? new_int64(count, &each) : nb::none();
                std::int64_t elapsed = 0;
                {
                    nb::gil_scoped_release released;
                    elapsed = receive_stamped(reader, count, each, patience_ns);
                }
                return nb::make_tuple(elapsed, found);
            },
            "count"_a, "latencies"_a, "patience_ns"_a)
        .def(
            "read_idly",
            [](RingReader& reader, std::uint64_t count, std::int64_t busy_ns, std::int64_t patience_ns) {
                std::int64_t* each = nullptr;
                nb::object taken = new_int64(count, &each);
                {
                    nb::gil_scoped_release released;
                    read_idly(usable(reader), count, busy_ns, each, patience_ns);
                }
                return taken;
            },
            "count"_a, "busy_ns"_a, "patience_ns"_a)
        .def_prop_ro("position", &RingReader::position)
        .def_prop_ro("lost", &RingReader::lost)
        .def_prop_ro("behind", &RingReader::behind)
        .def_prop_ro("writers", &RingReader::writers)
        .def_prop_ro("writer_lives", [](RingReader& reader) { return usable(reader).writer_lives(); })
        .def_prop_ro("capacity", &RingReader::capacity);
}

}  // namespace strikeforge
