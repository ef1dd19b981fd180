#include "host/strategy.hpp"

#include <cmath>
#include <string>
#include <vector>

#include "host/event_time.hpp"

namespace strikeforge {

namespace {

class NullStrategy final : public Strategy {
  public:
    void on_event(const Market&, const Book&, const std::vector<ContractState>&, Intents&) override {}
};

class FixedWidthQuoter final : public Strategy {
  public:
    FixedWidthQuoter(const FixedWidth& options, size_t contracts) : options_(options), last_(2 * contracts) {
        const auto refuse = [](const char* name, const char* must) {
            throw HostProblem(std::string("fixed-width quoter: ") + name + " must be " + must);
        };
        const auto at_least_zero = [](double value) { return std::isfinite(value) && value >= 0; };
        if (!at_least_zero(options.half_width_money)) refuse("half_width_money", "finite and not negative");
        if (!at_least_zero(options.requote_money)) refuse("requote_money", "finite and not negative");
        if (!at_least_zero(options.skew_money_per_unit)) refuse("skew_money_per_unit", "finite and not negative");
        if (!(at_least_zero(options.quantity) && options.quantity > 0)) refuse("quantity", "finite and above 0");
        if (!(at_least_zero(options.tick_money) && options.tick_money > 0)) refuse("tick_money", "finite and above 0");
        if (options.retry_ns < 0) refuse("retry_ns", "not negative");
    }

    void on_event(const Market& market, const Book&, const std::vector<ContractState>& contracts,
                  Intents& out) override {
        for (size_t place = 0; place < contracts.size(); ++place) {
            const ContractState& contract = contracts[place];
            const double centre = contract.fair - options_.skew_money_per_unit * contract.position;
            const double tick = options_.tick_money;
            double bid = 0, ask = 0;  // no target
            if (!std::isnan(market.spot) && !std::isnan(contract.fair)) {
                bid = std::floor((centre - options_.half_width_money) / tick) * tick;
                ask = std::ceil((centre + options_.half_width_money) / tick) * tick;
            }
            quote(market, static_cast<std::uint16_t>(place), is_buy, contract.buy, bid, out);
            quote(market, static_cast<std::uint16_t>(place), 0, contract.sell, ask, out);
        }
    }

    // Asking the same at every event would be a burst of refusals (docs/host-rules.md), which halts the host.
    void on_refused(const Intent& intent, const Market& market) override {
        refusal_of(intent.contract, intent.flags & is_buy) = {true, market.event_ns};
    }

  private:
    struct Refusal {
        bool was;
        std::int64_t event_ns;
    };
    Refusal& refusal_of(std::uint16_t contract, bool buys) { return last_[2 * static_cast<size_t>(contract) + buys]; }

    void quote(const Market& market, std::uint16_t contract, std::uint8_t side, const ContractState::Working& working,
               double target, Intents& out) {
        const auto ask = [&](std::uint8_t action, double price, double quantity) {
            out.ask({contract, static_cast<std::uint8_t>(action | side), price, quantity});
        };
        if (!(target > 0)) {
            if (working.id) ask(is_cancel, 0, 0);
        } else if (!working.id) {
            const Refusal& last = refusal_of(contract, side & is_buy);
            const bool waits = last.was && ns_between(last.event_ns, market.event_ns) < options_.retry_ns;
            if (!waits) ask(is_new, target, options_.quantity);
        } else if (std::abs(working.price - target) >= options_.requote_money) {
            ask(is_replace, target, options_.quantity);
        }
    }

    FixedWidth options_;
    std::vector<Refusal> last_;  // of every contract: sell, buy
};

}  // namespace

std::unique_ptr<Strategy> make_null_strategy() {
    return std::make_unique<NullStrategy>();
}

std::unique_ptr<Strategy> make_fixed_width(const FixedWidth& options, size_t contracts) {
    return std::make_unique<FixedWidthQuoter>(options, contracts);
}

}  // namespace strikeforge
