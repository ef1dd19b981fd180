// The loop of a trading host. What it is made of crosses once, by attribute names of the Python objects; records cross
// as arrays of 56 bytes each (record_arrays.hpp).
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <atomic>
#include <memory>
#include <optional>

#include "bindings/bindings.hpp"
#include "bindings/board_layout.hpp"
#include "bindings/choices.hpp"
#include "bindings/host_types.hpp"
#include "bindings/record_arrays.hpp"
#include "host/loop.hpp"
#include "host/outside.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace strikeforge {

namespace {

using Numbers = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Numbers numbers(nb::handle of, const char* name, std::optional<size_t> count = {}) {
    auto out = nb::cast<Numbers>(nb::object(of.attr(name)), false);
    if (count && out.shape(0) != *count)
        throw HostProblem(std::string(name) + ": expected " + std::to_string(*count) + " numbers, found " +
                          std::to_string(out.shape(0)));
    return out;
}

template <class Value>
Value value_of(nb::handle of, const char* name) {
    return nb::cast<Value>(nb::object(of.attr(name)));
}

std::unique_ptr<Strategy> strategy_of(nb::handle options, size_t contracts) {
    if (options.is_none()) return make_null_strategy();
    return make_fixed_width(fixed_width_of(options), contracts);
}

class BoundLoop {
  public:
    BoundLoop(NativeEngine& engine, const std::string& isa, nb::handle strategy, nb::handle settings) {
        const Numbers step_mean = numbers(settings, "step_mean", TickFeatures::count);
        const Numbers step_deviation = numbers(settings, "step_deviation", TickFeatures::count);
        const Numbers strike = numbers(settings, "strike");
        const size_t count = strike.shape(0);
        const Numbers tau = numbers(settings, "tau_years", count), carry = numbers(settings, "carry", count),
                      discount = numbers(settings, "discount", count), right = numbers(settings, "right", count),
                      last = numbers(settings, "last_volatility", count);
        const size_t known = Contracts::known_features;
        const Numbers mean = numbers(settings, "contract_mean", known),
                      deviation = numbers(settings, "contract_deviation", known),
                      as_they_are = numbers(settings, "contract_unscaled", known);
        unsigned char unscaled[known];
        for (size_t column = 0; column < known; ++column) unscaled[column] = as_they_are.data()[column] != 0;
        LoopSettings made{
            value_of<std::int64_t>(settings, "step_ns"),
            StepScaler(step_mean.data(), step_deviation.data(), TickFeatures::count, engine.step_features(),
                       value_of<double>(settings, "step_clip")),
            {count, strike.data(), tau.data(), carry.data(), discount.data(), right.data(), last.data()},
            {mean.data(), deviation.data(), unscaled, value_of<double>(settings, "contract_clip")},
            value_of<size_t>(settings, "quoted"),
            value_of<double>(settings, "reference_spot"),
            limits_of(settings.attr("limits")),
            {value_of<std::string>(settings, "orders"), value_of<std::string>(settings, "fills"),
             value_of<std::string>(settings, "signals"), value_of<std::uint64_t>(settings, "ring_records"),
             value_of<bool>(settings, "lossless_out")},
            value_of<std::string>(settings, "board"),
            value_of<std::string>(settings, "chain"),
            value_of<std::int64_t>(settings, "fair_values_every_ns"),
            value_of<size_t>(settings, "sweep_contracts"),
            value_of<std::int64_t>(settings, "sweep_every_ns"),
        };
        const auto ticks = value_of<std::string>(settings, "ticks");
        if (!ticks.empty())
            ticks_ = std::make_unique<RingReader>(ticks, value_of<std::string>(settings, "reader"),
                                                  value_of<bool>(settings, "lossless_in"));
        loop_ = std::make_unique<Loop>(engine, option_kernels(named_isa(isa)), dense_kernels(named_isa(isa)),
                                       strategy_of(strategy, made.quoted), made);
    }

    nb::bytes process(nb::handle array, bool sweep) {
        const RecordsOf records = records_of(array);
        const Busy busy(busy_);
        loop_->forget_left();
        {
            nb::gil_scoped_release others_may_run;
            loop_->process(records.data, records.count, sweep);
        }
        return nb::bytes(loop_->left().data(), loop_->left().size() * sizeof(Record));
    }

    std::string run(bool sleep, std::int64_t idle_exit_ns, std::uint64_t events, bool signals,
                    const std::string& halt_folder) {
        if (!ticks_) throw HostProblem("run: this loop has no rings; give their paths");
        const Busy busy(busy_);
        nb::gil_scoped_release others_may_run;
        std::optional<SignalSwitch> switches;
        std::optional<HaltFile> halt_file;
        if (signals) switches.emplace(loop_->board());
        if (!halt_folder.empty()) halt_file.emplace(loop_->board(), halt_folder);
        const RunEnd end = loop_->run(*ticks_, {sleep, idle_exit_ns, events});
        return end == RunEnd::stopped ? "stopped" : end == RunEnd::idle ? "idle" : "events";
    }

    Loop& loop() { return *loop_; }

  private:
    // One call of `process` or `run` at a time.
    class Busy {
      public:
        explicit Busy(std::atomic<bool>& flag) : flag_(flag) {
            if (flag_.exchange(true)) throw HostProblem("this loop runs already, in another thread");
        }
        ~Busy() { flag_ = false; }

      private:
        std::atomic<bool>& flag_;
    };
    std::atomic<bool> busy_{false};
    std::unique_ptr<RingReader> ticks_;
    std::unique_ptr<Loop> loop_;
};

// Read-only memory that lives as long as the loop.
nb::object page_of(nb::handle_t<BoundLoop> self, const SharedPage& page) {
    using Bytes = nb::ndarray<nb::numpy, const std::uint8_t, nb::ndim<1>>;
    return nb::cast(Bytes(page.data(), {page.bytes()}, self));
}

ControlCode code_of(unsigned code) {
    const bool known =
        code >= static_cast<unsigned>(ControlCode::kill) && code <= static_cast<unsigned>(ControlCode::cancel_all);
    if (!known) throw HostProblem("there is no control " + std::to_string(code) + " to ask for");
    return static_cast<ControlCode>(code);
}

}  // namespace

void bind_loop(nb::module_& module) {
    bind_board_layout(module);
    nb::class_<BoundLoop>(module, "Loop")
        .def(nb::init<NativeEngine&, const std::string&, nb::handle, nb::handle>(), nb::keep_alive<1, 2>(), "engine"_a,
             "isa"_a, "strategy"_a.none(), "settings"_a)
        .def("process", &BoundLoop::process, "records"_a, "sweep"_a)
        .def("run", &BoundLoop::run, "sleep"_a, "idle_exit_ns"_a, "events"_a, "signals"_a, "halt_folder"_a)
        .def(
            "ask", [](BoundLoop& self, unsigned code, double value) { return self.loop().ask(code_of(code), value); },
            "code"_a, "value"_a)
        .def(
            "ask_limits",
            [](BoundLoop& self, nb::handle limits, double serial) {
                return self.loop().ask_limits(limits_of(limits), serial);
            },
            "limits"_a, "serial"_a)
        .def("stop", [](BoundLoop& self) { self.loop().board().stop.store(1, std::memory_order_release); })
        .def_prop_ro("counts_ticks", [](BoundLoop& self) { return self.loop().counts_ticks(); })
        .def("board",
             [](nb::handle_t<BoundLoop> self) { return page_of(self, nb::cast<BoundLoop&>(self).loop().board_page()); })
        .def("chain", [](nb::handle_t<BoundLoop> self) {
            return page_of(self, nb::cast<BoundLoop&>(self).loop().chain_page());
        });
}

}  // namespace strikeforge
