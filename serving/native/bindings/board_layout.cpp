#include "bindings/board_layout.hpp"

#include <cstddef>
#include <type_traits>

#include "host/board.hpp"
#include "host/loop.hpp"

namespace nb = nanobind;

namespace strikeforge {

namespace {

template <class Number>
constexpr const char* format_of() {
    if constexpr (std::is_same_v<Number, double>) return "f8";
    if constexpr (std::is_same_v<Number, std::int64_t>) return "i8";
    if constexpr (std::is_same_v<Number, std::uint64_t>) return "u8";
    if constexpr (std::is_same_v<Number, std::uint32_t>) return "u4";
}

// (NumPy format, offset, how many; 1: a number).
template <class Field>
nb::tuple place_of(size_t offset) {
    using Atomic = std::remove_all_extents_t<Field>;
    static_assert(sizeof(Atomic) == sizeof(typename Atomic::value_type));
    return nb::make_tuple(format_of<typename Atomic::value_type>(), offset, sizeof(Field) / sizeof(Atomic));
}

#define PLACE(fields, shape, name) fields[#name] = place_of<decltype(shape::name)>(offsetof(shape, name))

nb::dict board_fields() {
    static_assert(std::is_standard_layout_v<Board>);
    nb::dict fields;
    PLACE(fields, Board, version);
    PLACE(fields, Board, kill);
    PLACE(fields, Board, stop);
    PLACE(fields, Board, halt_file);
    PLACE(fields, Board, records);
    PLACE(fields, Board, events);
    PLACE(fields, Board, trades);
    PLACE(fields, Board, orders);
    PLACE(fields, Board, cancels);
    PLACE(fields, Board, fills);
    PLACE(fields, Board, signals);
    PLACE(fields, Board, refused);
    PLACE(fields, Board, skipped);
    PLACE(fields, Board, unknown);
    PLACE(fields, Board, time_went_back);
    PLACE(fields, Board, refused_books);
    PLACE(fields, Board, refused_numbers);
    PLACE(fields, Board, unheard);
    PLACE(fields, Board, lost);
    PLACE(fields, Board, gaps);
    PLACE(fields, Board, writers);
    PLACE(fields, Board, advances);
    PLACE(fields, Board, sweeps);
    PLACE(fields, Board, controls);
    PLACE(fields, Board, controls_refused);
    PLACE(fields, Board, allocations);
    PLACE(fields, Board, event_ns);
    PLACE(fields, Board, started_ns);
    PLACE(fields, Board, alive_ns);
    PLACE(fields, Board, sweep_age_ns);
    PLACE(fields, Board, spot);
    PLACE(fields, Board, profit);
    PLACE(fields, Board, best_profit);
    PLACE(fields, Board, delta);
    PLACE(fields, Board, gamma);
    PLACE(fields, Board, vega);
    PLACE(fields, Board, anomaly_score);
    PLACE(fields, Board, clipped_share);
    PLACE(fields, Board, state);
    PLACE(fields, Board, why);
    PLACE(fields, Board, model_expired);
    PLACE(fields, Board, running);
    PLACE(fields, Board, process);
    PLACE(fields, Board, contracts);
    PLACE(fields, Board, chain);
    PLACE(fields, Board, refused_by);
    PLACE(fields, Board, position);
    PLACE(fields, Board, fair);
    PLACE(fields, Board, volatility);
    PLACE(fields, Board, bid);
    PLACE(fields, Board, ask);
    return fields;
}

nb::dict line_fields() {
    nb::dict fields;
    PLACE(fields, ChainLine, volatility);
    PLACE(fields, ChainLine, fair);
    PLACE(fields, ChainLine, delta);
    PLACE(fields, ChainLine, gamma);
    PLACE(fields, ChainLine, vega);
    PLACE(fields, ChainLine, theta);
    PLACE(fields, ChainLine, spot);
    PLACE(fields, ChainLine, event_ns);
    return fields;
}

nb::dict histogram_fields() {
    nb::dict fields;
    PLACE(fields, Histogram, total);
    PLACE(fields, Histogram, sum_ns);
    PLACE(fields, Histogram, max_ns);
    PLACE(fields, Histogram, counts);
    return fields;
}

#undef PLACE

nb::dict board_layout() {
    nb::list hop_names, reasons;
    for (size_t hop = 0; hop < hops; ++hop) hop_names.append(hop_name(static_cast<Hop>(hop)));
    for (size_t reason = 0; reason < static_cast<size_t>(Reason::reason_count); ++reason)
        reasons.append(reason_name(static_cast<Reason>(reason)));
    nb::dict layout;
    layout["version"] = Board::layout;
    layout["bytes"] = sizeof(Board);
    layout["fields"] = board_fields();
    layout["hops"] = hop_names;
    layout["reasons"] = reasons;
    layout["histograms_at"] = offsetof(Board, hop);
    layout["histogram_bytes"] = sizeof(Histogram);
    layout["histogram_fields"] = histogram_fields();
    layout["histogram_sub_bits"] = Histogram::sub_bits;
    layout["chain_header_bytes"] = sizeof(ChainHeader);
    layout["line_bytes"] = sizeof(ChainLine);
    layout["line_fields"] = line_fields();
    return layout;
}

}  // namespace

void bind_board_layout(nb::module_& module) {
    module.def("board_layout", &board_layout);
    module.def("histogram_slot", &Histogram::slot_of, nb::arg("ns"));
    nb::dict controls, signals;
    controls["KILL"] = static_cast<int>(ControlCode::kill);
    controls["REDUCE"] = static_cast<int>(ControlCode::reduce);
    controls["RESUME"] = static_cast<int>(ControlCode::resume);
    controls["ANOMALY_SCORE"] = static_cast<int>(ControlCode::anomaly_score);
    controls["MODEL_EXPIRED"] = static_cast<int>(ControlCode::model_expired);
    controls["CANCEL_ALL"] = static_cast<int>(ControlCode::cancel_all);
    controls["LIMITS"] = static_cast<int>(ControlCode::limits);
    signals["STATE"] = static_cast<int>(SignalCode::state);
    signals["CONTROL_ACTED"] = static_cast<int>(SignalCode::control_acted);
    signals["FAIR_VALUES"] = static_cast<int>(SignalCode::fair_values);
    signals["CONTROL_REFUSED"] = static_cast<int>(SignalCode::control_refused);
    module.attr("CONTROL_CODES") = controls;
    module.attr("SIGNAL_CODES") = signals;
}

}  // namespace strikeforge
