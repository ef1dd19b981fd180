#include "host/strategy.hpp"

#include <cmath>
#include <string>

namespace strikeforge {

namespace {

class NullStrategy final : public Strategy {
  public:
    void on_event(const Market&, const Book&, const std::vector<ContractState>&, Intents&) override {}
};

class FixedWidthQuoter final : public Strategy {
  public:
    explicit FixedWidthQuoter(const FixedWidth& options) : options_(options) {
        const auto refuse = [](const char* name, const char* must) {
            throw HostProblem(std::string("fixed-width quoter: ") + name + " must be " + must);
        };
        const auto at_least_zero = [](double value) { return std::isfinite(value) && value >= 0; };
        if (!at_least_zero(options.half_width_money)) refuse("half_width_money", "finite and not negative");
        if (!at_least_zero(options.requote_money)) refuse("requote_money", "finite and not negative");
        if (!at_least_zero(options.skew_money_per_unit)) refuse("skew_money_per_unit", "finite and not negative");
        if (!(at_least_zero(options.quantity) && options.quantity > 0)) refuse("quantity", "finite and above 0");
        if (!(at_least_zero(options.tick_money) && options.tick_money > 0)) refuse("tick_money", "finite and above 0");
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
            quote(static_cast<std::uint16_t>(place), is_buy, contract.buy, bid, out);
            quote(static_cast<std::uint16_t>(place), 0, contract.sell, ask, out);
        }
    }

  private:
    void quote(std::uint16_t contract, std::uint8_t side, const ContractState::Working& working, double target,
               Intents& out) const {
        const auto ask = [&](std::uint8_t action, double price, double quantity) {
            out.ask({contract, static_cast<std::uint8_t>(action | side), price, quantity});
        };
        if (!(target > 0)) {
            if (working.id) ask(is_cancel, 0, 0);
        } else if (!working.id) {
            ask(is_new, target, options_.quantity);
        } else if (std::abs(working.price - target) >= options_.requote_money) {
            ask(is_replace, target, options_.quantity);
        }
    }

    FixedWidth options_;
};

}  // namespace

std::unique_ptr<Strategy> make_null_strategy() {
    return std::make_unique<NullStrategy>();
}

std::unique_ptr<Strategy> make_fixed_width(const FixedWidth& options) {
    return std::make_unique<FixedWidthQuoter>(options);
}

}  // namespace strikeforge
