#include "market/tick_features.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <stdexcept>
#include <string>

namespace strikeforge {

const char* const TickFeatures::names[count] = {
    "imbalance_1",
    "imbalance_3",
    "imbalance_5",
    "imbalance_10",
    "micro_price_distance",
    "spread",
    "spread_against_mean",
    "depth_against_mean",
    "vwap_distance_1",
    "vwap_distance_8",
    "vwap_distance_64",
    "order_flow_imbalance_1",
    "order_flow_imbalance_8",
    "order_flow_imbalance_64",
    "trade_imbalance_1",
    "trade_imbalance_8",
    "trade_imbalance_64",
    "realised_volatility_1",
    "realised_volatility_8",
    "realised_volatility_64",
    "momentum_1",
    "momentum_4",
    "momentum_8",
    "momentum_16",
    "momentum_64",
    "trend_64",
    "profile_skew",
    "point_of_control_distance",
    "point_of_control_share",
    "volume_spike",
    "volume_share_8",
    "trade_intensity_1",
    "trade_intensity_8",
    "trade_intensity_64",
    "quote_intensity_1",
    "quote_intensity_8",
    "quote_intensity_64",
    "elapsed_share",
    "trade_age",
    "skipped_steps",
};

namespace {

constexpr size_t momentum_steps[5] = {1, 4, 8, 16, 64};
constexpr size_t imbalance_levels[4] = {1, 3, 5, 10};

bool is_plausible(double value) {
    return value >= TickFeatures::smallest && value <= TickFeatures::largest;
}

}  // namespace

void TickFeatures::Sums::add(const Sums& other) {
    trades += other.trades;
    volume += other.volume;
    notional += other.notional;
    bought += other.bought;
    sold += other.sold;
    quotes += other.quotes;
    flow += other.flow;
    squared_return += other.squared_return;
    depth += other.depth;
    spread += other.spread;
}

TickFeatures::TickFeatures(std::int64_t step_ns) : step_ns_(step_ns) {
    if (step_ns <= 0) throw std::invalid_argument("step_ns: expected more than 0, found " + std::to_string(step_ns));
}

void TickFeatures::reset() {
    *this = TickFeatures(step_ns_);
}

void TickFeatures::start(double mid, double spread) {
    started_ = true;
    step_ = now_ns_ / step_ns_;
    traded_ns_ = now_ns_;
    first_mid_ = mid;
    std::fill(std::begin(base_), std::end(base_), mid);
    over_8_.first_step = over_64_.first_step = step_;
    profile_.begin(mid, spread);
}

bool TickFeatures::close_before(std::int64_t event_ns, double* closed) {
    now_ns_ = std::max(now_ns_, event_ns);
    if (!started_ || now_ns_ / step_ns_ <= step_) return false;
    row(closed);
    close();
    return true;
}

TickFeatures::Horizon TickFeatures::over(size_t steps) const {
    Horizon out;
    const size_t known = std::min<std::uint64_t>(steps - 1, closed_);
    for (size_t step = known; step > 0; --step) out.sums.add(ago(step).sums);
    out.first_step = known ? ago(known).step : step_;
    return out;
}

// The open step goes to the ring, that of now_ns_ opens, and all that is known of the closed ones is made anew.
void TickFeatures::close() {
    Step& done = ring_[closed_ % longest];
    done = {open_, best_.mid, open_.volume > 0 ? open_.notional / open_.volume : best_.mid, step_};
    ++closed_;
    const std::int64_t next = now_ns_ / step_ns_;
    skipped_ = static_cast<double>(next - step_ - 1);
    step_ = next;
    open_ = Sums();
    over_8_ = over(8);
    over_64_ = over(64);
    for (size_t place = 0; place < std::size(momentum_steps); ++place) {
        const size_t steps = momentum_steps[place];
        base_[place] = steps <= closed_ ? ago(steps).mid : first_mid_;
    }

    const size_t known = std::min<std::uint64_t>(longest - 1, closed_);
    const double mean = over_64_.sums.volume / static_cast<double>(known);
    double squares = 0;
    for (size_t step = known; step > 0; --step) {
        const double off = ago(step).sums.volume - mean;
        squares += off * off;
    }
    usual_volume_ = mean;
    volume_deviation_ = std::sqrt(squares / static_cast<double>(known));

    const double move = best_.mid * std::sqrt(over_64_.sums.squared_return);
    profile_.begin(best_.mid, std::max(best_.ask - best_.bid, 0.25 * move));
    for (size_t step = known; step > 0; --step) profile_.add(ago(step).vwap, ago(step).sums.volume);
}

void TickFeatures::take(const Record& record, const Book& book) {
    if (record.header.kind == Kind::trade) {
        if (started_) take_trade(record.trade);
    } else if (book.changes() != changes_seen_) {
        changes_seen_ = book.changes();
        if (book.usable()) take_book(book);
    }
}

void TickFeatures::take_trade(const Trade& trade) {
    const double price = trade.price, size = trade.size;
    if (!is_plausible(price) || !is_plausible(size)) {
        ++refused_;
        return;
    }
    taken_ns_ = traded_ns_ = now_ns_;
    open_.trades += 1;
    open_.volume += size;
    open_.notional += price * size;
    const std::uint8_t taker = trade.header.flags & (buyer_took | seller_took);
    const bool told = taker == buyer_took || taker == seller_took;
    if (told ? taker == buyer_took : price > best_.mid) open_.bought += size;
    if (told ? taker == seller_took : price < best_.mid) open_.sold += size;
    profile_.add(price, size);
}

void TickFeatures::take_book(const Book& book) {
    Best next;
    double bids = 0, asks = 0;
    size_t level = 0;
    for (size_t place = 0; place < std::size(imbalance_levels); ++place) {
        for (; level < imbalance_levels[place]; ++level) {
            if (level < book.bids()) bids += book.bid(level).size;
            if (level < book.asks()) asks += book.ask(level).size;
        }
        next.imbalance[place] = (bids - asks) / (bids + asks);
    }
    next.bid = book.bid(0).price;
    next.ask = book.ask(0).price;
    next.bid_size = book.bid(0).size;
    next.ask_size = book.ask(0).size;
    if (next.bid < smallest || next.ask > largest || next.bid_size < smallest || next.ask_size < smallest ||
        bids > largest || asks > largest) {
        ++refused_;
        return;
    }
    next.mid = book.mid();
    next.spread = (next.ask - next.bid) / next.mid;
    next.depth = 0.5 * (next.bid_size + next.ask_size);
    const double micro = (next.bid * next.ask_size + next.ask * next.bid_size) / (next.bid_size + next.ask_size);
    next.micro_distance = (micro - next.mid) / next.mid;

    taken_ns_ = now_ns_;
    if (started_) {
        const double bought =
            (next.bid >= best_.bid ? next.bid_size : 0) - (next.bid <= best_.bid ? best_.bid_size : 0);
        const double sold = (next.ask <= best_.ask ? next.ask_size : 0) - (next.ask >= best_.ask ? best_.ask_size : 0);
        open_.flow += bought - sold;
        if (next.mid != best_.mid) {
            const double move = std::log(next.mid / best_.mid);
            open_.squared_return += move * move;
        }
    } else {
        start(next.mid, next.ask - next.bid);
    }
    open_.quotes += 1;
    open_.depth += next.depth;
    open_.spread += next.spread;
    best_ = next;
}

void TickFeatures::row(double* out) const {
    if (!started_) {
        std::fill(out, out + count, 0.0);
        return;
    }
    Sums sums[3] = {open_, over_8_.sums, over_64_.sums};
    sums[1].add(open_);
    sums[2].add(open_);
    const double span[3] = {1, static_cast<double>(step_ - over_8_.first_step) + 1,
                            static_cast<double>(step_ - over_64_.first_step) + 1};
    const Sums& all = sums[2];
    const double mid = best_.mid;

    for (double imbalance : best_.imbalance) *out++ = imbalance;
    *out++ = best_.micro_distance;
    *out++ = best_.spread;
    *out++ = all.quotes > 0 ? std::log(best_.spread / (all.spread / all.quotes)) : 0;
    *out++ = all.quotes > 0 ? std::log(best_.depth / (all.depth / all.quotes)) : 0;
    for (const Sums& of : sums) *out++ = of.volume > 0 ? (of.notional / of.volume - mid) / mid : 0;
    for (const Sums& of : sums) *out++ = of.quotes > 0 ? of.flow / (of.depth / of.quotes) : 0;
    for (const Sums& of : sums) *out++ = of.volume > 0 ? (of.bought - of.sold) / of.volume : 0;
    for (size_t place = 0; place < 3; ++place) *out++ = std::sqrt(sums[place].squared_return / span[place]);
    for (double base : base_) *out++ = std::log(mid / base);
    *out = all.squared_return > 0 ? out[-1] / std::sqrt(all.squared_return) : 0;
    ++out;

    const VolumeProfile::Shape profile = profile_.shape(mid);
    *out++ = profile.skew;
    *out++ = (profile.control_price - mid) / mid;
    *out++ = profile.control_share;
    const double usual = usual_volume_ + volume_deviation_;
    *out++ = usual > 0 ? std::log((open_.volume + usual) / (usual_volume_ + usual)) : 0;
    const double rate_8 = sums[1].volume / span[1], rate_64 = all.volume / span[2];
    *out++ = rate_8 > 0 ? rate_8 / (rate_8 + rate_64) : 0;
    for (size_t place = 0; place < 3; ++place) *out++ = std::log(1 + sums[place].trades / span[place]);
    for (size_t place = 0; place < 3; ++place) *out++ = std::log(1 + sums[place].quotes / span[place]);

    const double step_ns = static_cast<double>(step_ns_);
    *out++ = static_cast<double>(std::max<std::int64_t>(taken_ns_ - step_ * step_ns_, 0)) / step_ns;
    *out++ = std::log(1 + static_cast<double>(taken_ns_ - traded_ns_) / step_ns);
    *out = std::log(1 + skipped_);
}

}  // namespace strikeforge
