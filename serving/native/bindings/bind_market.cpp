// The book and the features of market steps. Records come as uint64 [n, 7], the 56 bytes of each as they are in a ring
// (serving/host/tick_features.py makes that view and checks the type).
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.hpp"
#include "market/book.hpp"
#include "market/scaler.hpp"
#include "market/tick_features.hpp"

namespace nb = nanobind;

namespace strikeforge {

namespace {

using Words = nb::ndarray<const std::uint64_t, nb::shape<-1, 7>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Row = nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Scaled = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class Array>
auto* sized(const char* name, const Array& array, size_t size) {
    if (array.shape(0) != size)
        throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(size) + " numbers, found " +
                                    std::to_string(array.shape(0)));
    return array.data();
}

Record record_at(const Words& records, size_t place) {
    Record record;
    std::memcpy(&record, records.data() + 7 * place, sizeof record);
    return record;
}

// NumPy takes the vector over.
template <class Number, size_t columns = 0>
nb::object array_of(std::vector<Number>&& numbers) {
    auto kept = std::make_unique<std::vector<Number>>(std::move(numbers));
    Number* data = kept->data();
    const size_t count = kept->size();
    const nb::capsule owner(kept.release(), [](void* of) noexcept { delete static_cast<std::vector<Number>*>(of); });
    if constexpr (columns == 0)
        return nb::cast(nb::ndarray<nb::numpy, Number>(data, {count}, owner));
    else
        return nb::cast(nb::ndarray<nb::numpy, Number>(data, {count / columns, columns}, owner));
}

// One instrument's records to rows, as the loop does it: what isn't of the underlying is passed over.
class TickStream {
  public:
    explicit TickStream(std::int64_t step_ns) : features_(step_ns) {}

    enum class Taken { nothing, event, closing_event };
    // What the record was; `closed` [count] is written by an event that closes a step.
    Taken take(const Record& record, double* closed) {
        if (record.header.kind != Kind::control) book_.follow(record.header.sequence);
        if (record.header.instrument != 0) return Taken::nothing;
        if (!Book::ends_event(record)) {
            book_.apply(record, now_ns_);
            return Taken::nothing;
        }
        now_ns_ = std::max(now_ns_, record.header.event_ns);
        const bool closes = features_.close_before(record.header.event_ns, closed);
        book_.apply(record, now_ns_);
        features_.take(record, book_);
        return closes ? Taken::closing_event : Taken::event;
    }
    const Book& book() const { return book_; }
    const TickFeatures& features() const { return features_; }

  private:
    Book book_;
    TickFeatures features_;
    std::int64_t now_ns_ = 0;
};

struct Batch {
    std::vector<double> closed, closed_mid, open, open_mid;
    std::vector<std::int64_t> closed_start_ns, closed_by, open_record;
};

size_t events_in(const Words& records) {
    size_t events = 0;
    for (size_t place = 0; place < records.shape(0); ++place) {
        const Record record = record_at(records, place);
        events += record.header.instrument == 0 && Book::ends_event(record);
    }
    return events;
}

nb::dict tick_rows(const Words& records, std::int64_t step_ns, bool open_rows) {
    constexpr size_t columns = TickFeatures::count;
    Batch out;
    TickStream stream(step_ns);
    {
        const nb::gil_scoped_release others_may_run;
        double closed[columns], open[columns];
        if (open_rows) out.open.reserve(events_in(records) * columns);
        for (size_t place = 0; place < records.shape(0); ++place) {
            const std::int64_t start_ns = stream.features().step_start_ns();
            const double mid = stream.features().mid();
            const TickStream::Taken taken = stream.take(record_at(records, place), closed);
            if (taken == TickStream::Taken::nothing) continue;
            if (taken == TickStream::Taken::closing_event) {
                out.closed.insert(out.closed.end(), closed, closed + columns);
                out.closed_start_ns.push_back(start_ns);
                out.closed_mid.push_back(mid);
                out.closed_by.push_back(static_cast<std::int64_t>(place));
            }
            if (!open_rows) continue;
            stream.features().row(open);
            out.open.insert(out.open.end(), open, open + columns);
            out.open_mid.push_back(stream.book().usable() ? stream.book().mid()
                                                          : std::numeric_limits<double>::quiet_NaN());
            out.open_record.push_back(static_cast<std::int64_t>(place));
        }
    }
    nb::dict rows;
    rows["closed"] = array_of<double, columns>(std::move(out.closed));
    rows["closed_start_ns"] = array_of(std::move(out.closed_start_ns));
    rows["closed_mid"] = array_of(std::move(out.closed_mid));
    rows["closed_by"] = array_of(std::move(out.closed_by));
    rows["open"] = array_of<double, columns>(std::move(out.open));
    rows["open_mid"] = array_of(std::move(out.open_mid));
    rows["open_record"] = array_of(std::move(out.open_record));
    rows["refused_books"] = stream.book().refused();
    rows["refused_numbers"] = stream.features().refused();
    return rows;
}

class BoundTickStream {
  public:
    explicit BoundTickStream(std::int64_t step_ns) : step_ns_(step_ns), stream_(step_ns) {}
    // How many of the records' events closed a step; the last of these rows is in `closed`, the open one in `row`.
    size_t take(const Words& records, const Row& closed, const Row& row) {
        double* closed_row = sized("closed", closed, TickFeatures::count);
        double* open_row = sized("row", row, TickFeatures::count);
        size_t closes = 0;
        for (size_t place = 0; place < records.shape(0); ++place)
            closes += stream_.take(record_at(records, place), closed_row) == TickStream::Taken::closing_event;
        stream_.features().row(open_row);
        return closes;
    }
    void reset() { stream_ = TickStream(step_ns_); }
    bool started() const { return stream_.features().started(); }
    std::int64_t step_start_ns() const { return stream_.features().step_start_ns(); }
    double mid() const { return stream_.features().mid(); }
    std::uint64_t refused() const { return stream_.features().refused(); }

  private:
    std::int64_t step_ns_;
    TickStream stream_;
};

using Levels = std::vector<std::pair<double, double>>;

class BoundBook {
  public:
    // True if the last record ended an event; the time of each counts as the largest so far.
    bool apply(const Words& records) {
        bool ended = false;
        for (size_t place = 0; place < records.shape(0); ++place) {
            const Record record = record_at(records, place);
            if (Book::ends_event(record)) now_ns_ = std::max(now_ns_, record.header.event_ns);
            ended = book_.apply(record, now_ns_);
        }
        return ended;
    }
    void clear() { book_.clear(); }
    Levels bids() const {
        Levels levels;
        for (size_t place = 0; place < book_.bids(); ++place)
            levels.emplace_back(book_.bid(place).price, book_.bid(place).size);
        return levels;
    }
    Levels asks() const {
        Levels levels;
        for (size_t place = 0; place < book_.asks(); ++place)
            levels.emplace_back(book_.ask(place).price, book_.ask(place).size);
        return levels;
    }
    const Book& book() const { return book_; }

  private:
    Book book_;
    std::int64_t now_ns_ = 0;
};

class BoundScaler {
  public:
    BoundScaler(const Numbers& mean, const Numbers& deviation, size_t padded, double clip)
        : scaler_(mean.data(), sized("deviation", deviation, mean.shape(0)), mean.shape(0), padded, clip) {}
    // Rows [S, known] to x [S, padded] and the clipped share of each [S].
    void scale(const Rows& rows, const Scaled& x, const Row& clipped_share) const {
        const size_t count = rows.shape(0);
        if (rows.shape(1) != scaler_.known() || x.shape(0) != count || x.shape(1) != scaler_.padded())
            throw std::invalid_argument("expected rows [S, " + std::to_string(scaler_.known()) + "] and x [S, " +
                                        std::to_string(scaler_.padded()) + "]");
        double* share = sized("clipped_share", clipped_share, count);
        for (size_t place = 0; place < count; ++place)
            share[place] = scaler_.scale(rows.data() + place * scaler_.known(), x.data() + place * scaler_.padded());
    }

  private:
    StepScaler scaler_;
};

}  // namespace

void bind_market(nb::module_& module) {
    nb::class_<BoundBook>(module, "Book")
        .def(nb::init<>())
        .def("apply", &BoundBook::apply, nb::arg("records").noconvert())
        .def("clear", &BoundBook::clear)
        .def_prop_ro("bids", &BoundBook::bids)
        .def_prop_ro("asks", &BoundBook::asks)
        .def_prop_ro("usable", [](const BoundBook& self) { return self.book().usable(); })
        .def_prop_ro("mid", [](const BoundBook& self) { return self.book().mid(); })
        .def_prop_ro("changed_ns", [](const BoundBook& self) { return self.book().changed_ns(); })
        .def_prop_ro("changes", [](const BoundBook& self) { return self.book().changes(); })
        .def_prop_ro("refused", [](const BoundBook& self) { return self.book().refused(); });
    nb::class_<BoundTickStream>(module, "TickFeatures")
        .def(nb::init<std::int64_t>(), nb::arg("step_ns"))
        .def("take", &BoundTickStream::take, nb::arg("records").noconvert(), nb::arg("closed").noconvert(),
             nb::arg("row").noconvert())
        .def("reset", &BoundTickStream::reset)
        .def_prop_ro("started", &BoundTickStream::started)
        .def_prop_ro("step_start_ns", &BoundTickStream::step_start_ns)
        .def_prop_ro("mid", &BoundTickStream::mid)
        .def_prop_ro("refused", &BoundTickStream::refused);
    nb::class_<BoundScaler>(module, "StepScaler")
        .def(nb::init<const Numbers&, const Numbers&, size_t, double>(), nb::arg("mean").noconvert(),
             nb::arg("deviation").noconvert(), nb::arg("padded"), nb::arg("clip"))
        .def("scale", &BoundScaler::scale, nb::arg("rows").noconvert(), nb::arg("x").noconvert(),
             nb::arg("clipped_share").noconvert());
    module.def("tick_rows", &tick_rows, nb::arg("records").noconvert(), nb::arg("step_ns"), nb::arg("open_rows"));
    nb::list names;
    for (const char* name : TickFeatures::names) names.append(name);
    module.attr("TICK_FEATURES") = nb::tuple(names);
}

}  // namespace strikeforge
