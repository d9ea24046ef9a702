// Draws the dashboard with Grafana's own components: data frames, transformations, field options, panels.
//
// Grafana publishes no component for a pie chart and none for a whole dashboard: the slices, the rows' headings and the
// grid are drawn here. `window.drawing` is {dashboard, variables, from, to, step, answers}; answers has, for each panel
// and query, what Prometheus answered.
import '@fontsource/inter/400.css';
import '@fontsource/inter/500.css';
import {
  applyFieldOverrides, cacheFieldDisplayNames, createTheme, dateTime, FieldType, getDisplayValueAlignmentFactors,
  getFieldDisplayValues, Registry, standardTransformers, standardTransformersRegistry,
  transformDataFrame, VizOrientation,
} from '@grafana/data';
import {
  BarGauge, BigValue, GlobalStyles, PanelChrome, PanelContextProvider, ThemeContext, TimeSeries,
  VizLayout, VizLegend, VizRepeater,
} from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { EventBusSrv } from '@grafana/data';
import { useState, useEffect } from 'react';
import { createRoot } from 'react-dom/client';
import { firstValueFrom } from 'rxjs';

const CELL = 30; // height of a line of the grid, and the gap between two
const GAP = 8;
const theme = createTheme({ colors: { mode: 'dark' } });
const { dashboard, variables, from, to, step, answers } = window.drawing;
const timeRange = { from: dateTime(from * 1000), to: dateTime(to * 1000), raw: { from: dateTime(from * 1000), to: dateTime(to * 1000) } };

// What the panels' plugins say of their options, in Grafana itself.
const GRAPH = {
  axisPlacement: 'auto', axisColorMode: 'text', axisLabel: '', barAlignment: 0, gradientMode: 'none', pointSize: 5,
  lineInterpolation: 'linear', scaleDistribution: { type: 'linear' }, showPoints: 'never',
  hideFrom: { legend: false, tooltip: false, viz: false }, stacking: { mode: 'none', group: 'A' }, thresholdsStyle: { mode: 'off' },
};
const TABLE = { align: 'auto', cellOptions: { type: 'auto' }, inspect: false };
const option = (path, isCustom) => ({
  id: isCustom ? `custom.${path}` : path, path, name: path, isCustom, process: (value) => value, shouldApply: () => true,
  getItemsCount: () => 1, settings: {},
});
const fieldConfigRegistry = new Registry(() => [
  ...['unit', 'decimals', 'min', 'max', 'color', 'thresholds', 'noValue', 'displayName', 'mappings'].map((path) => option(path, false)),
  ...[...Object.keys(GRAPH), ...Object.keys(TABLE), 'drawStyle', 'fillOpacity', 'lineWidth', 'spanNulls', 'width'].map((path) => option(path, true)),
]);
standardTransformersRegistry.setInit(() =>
  [standardTransformers.mergeTransformer, standardTransformers.sortByTransformer, standardTransformers.limitTransformer,
    standardTransformers.organizeFieldsTransformer, standardTransformers.orderFieldsTransformer,
    standardTransformers.renameFieldsTransformer, standardTransformers.filterFieldsByNameTransformer,
    standardTransformers.filterFieldsTransformer]
    .filter(Boolean)
    .map((transformation) => ({ id: transformation.id, name: transformation.name, transformation: async () => transformation, editor: () => null })));

const named = (legend, labels) => legend.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => labels[label] ?? '');
const number = (text) => (text === '+Inf' ? Infinity : Number(text));

// What the Prometheus data source makes of an answer.
function frames(target, result) {
  if (target.format === 'table') {
    const labels = [...new Set(result.flatMap((series) => Object.keys(series.metric)))].sort();
    return [{
      refId: target.refId,
      length: result.length,
      fields: [
        { name: 'Time', type: FieldType.time, config: {}, values: result.map((series) => series.value[0] * 1000) },
        ...labels.map((label) => ({ name: label, type: FieldType.string, config: {}, values: result.map((series) => series.metric[label]) })),
        { name: `Value #${target.refId}`, type: FieldType.number, config: {}, values: result.map((series) => number(series.value[1])) },
      ],
    }];
  }
  const times = [];
  for (let at = from; at <= to; at += step) times.push(at * 1000);
  const series = result.map((one) => {
    const points = new Map((one.values ?? [one.value]).map(([at, value]) => [Math.round(at * 1000), number(value)]));
    const at = target.instant ? [...points.keys()] : times;
    return {
      refId: target.refId,
      name: named(target.legendFormat, one.metric),
      labels: one.metric,
      at,
      values: at.map((time) => points.get(time) ?? null),
    };
  });
  if (target.format === 'heatmap') {
    series.sort((one, other) => number(one.labels.le) - number(other.labels.le));
    for (let i = series.length - 1; i > 0; i--) {
      series[i].values = series[i].values.map((value, j) => Math.max(0, value - series[i - 1].values[j]));
    }
  }
  return series.map(({ refId, name, labels, at, values }) => ({
    refId, name, length: at.length,
    fields: [
      { name: 'Time', type: FieldType.time, config: {}, values: at },
      { name: 'Value', type: FieldType.number, config: { displayNameFromDS: name }, labels, values },
    ],
  }));
}

async function prepared(panel) {
  let data = panel.targets.flatMap((target) => frames(target, answers[panel.id][target.refId]));
  if (panel.targets.length === 1 && panel.targets[0].format === 'table') {
    data.forEach((frame) => { frame.fields[frame.fields.length - 1].name = 'Value'; });
  }
  data = await firstValueFrom(transformDataFrame(panel.transformations ?? [], data, { interpolate: (text) => text }));
  const defaults = { ...panel.fieldConfig.defaults };
  const more = { timeseries: GRAPH, table: TABLE }[panel.type] ?? {};
  defaults.custom = { ...more, ...(defaults.custom ?? {}) };
  defaults.thresholds = defaults.thresholds && {
    ...defaults.thresholds,
    steps: defaults.thresholds.steps.map((one) => ({ ...one, value: one.value ?? -Infinity })),
  };
  const fieldConfig = { defaults, overrides: panel.fieldConfig.overrides };
  data = applyFieldOverrides({ data, fieldConfig, replaceVariables: (text) => text, theme, timeZone: 'utc', fieldConfigRegistry });
  cacheFieldDisplayNames(data);
  return data;
}

const reduced = (panel, data, sparkline) => getFieldDisplayValues({
  fieldConfig: { defaults: {}, overrides: [] }, reduceOptions: panel.options.reduceOptions, replaceVariables: (text) => text,
  theme, data, sparkline, timeZone: 'utc',
});

function Stat({ panel, data, width, height }) {
  const [shown] = reduced(panel, data, panel.options.graphMode !== 'none');
  return (
    <BigValue theme={theme} width={width} height={height} value={shown.display} sparkline={shown.sparkline && { ...shown.sparkline, timeRange }}
      colorMode={panel.options.colorMode} graphMode={panel.options.graphMode} justifyMode={panel.options.justifyMode}
      textMode={panel.options.textMode} count={1} />
  );
}

function Bars({ panel, data, width, height }) {
  const values = reduced(panel, data, false);
  const max = Math.max(...values.map((value) => value.display.numeric), 1);
  return (
    <VizRepeater source={data} getValues={() => values} renderCounter={0} width={width} height={height}
      orientation={VizOrientation.Horizontal} itemSpacing={4} minVizHeight={panel.options.minVizHeight} minVizWidth={0}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, alignmentFactors, ...size }) => (
        <BarGauge theme={theme} {...size} value={value.display} field={{ ...value.field, max, min: 0 }} text={{ titleSize: 12, valueSize: 12 }}
          display={value.view?.getFieldDisplayProcessor(value.colIndex)} displayMode={panel.options.displayMode}
          valueDisplayMode={panel.options.valueMode} showUnfilled={panel.options.showUnfilled} alignmentFactors={alignmentFactors} />
      )} />
  );
}

function Pie({ panel, data, width, height }) {
  const values = reduced(panel, data, false).filter((value) => value.display.numeric > 0)
    .sort((one, other) => other.display.numeric - one.display.numeric);
  const sum = values.reduce((all, value) => all + value.display.numeric, 0);
  const items = values.map((value) => ({
    label: value.display.title, color: value.display.color, yAxis: 1,
    getDisplayValues: () => [
      { title: 'Value', text: `${value.display.text}${value.display.suffix ?? ''}`, numeric: value.display.numeric },
      { title: 'Percent', text: `${Math.round((100 * value.display.numeric) / sum)}%`, numeric: value.display.numeric / sum },
    ],
  }));
  let turned = -Math.PI / 2;
  const slices = values.map((value) => {
    const angle = Math.min((2 * Math.PI * value.display.numeric) / sum, 2 * Math.PI - 1e-4);
    const at = (r, a) => `${r * Math.cos(a)} ${r * Math.sin(a)}`;
    const large = angle > Math.PI ? 1 : 0;
    const end = turned + angle;
    const path = `M ${at(1, turned)} A 1 1 0 ${large} 1 ${at(1, end)} L ${at(0.7, end)} A 0.7 0.7 0 ${large} 0 ${at(0.7, turned)} Z`;
    turned = end;
    return <path key={value.display.title} d={path} fill={value.display.color} />;
  });
  const legend = (
    <VizLayout.Legend placement="right">
      <VizLegend items={items} placement="right" displayMode="table" readonly />
    </VizLayout.Legend>
  );
  return (
    <VizLayout width={width} height={height} legend={legend}>
      {(w, h) => {
        const size = Math.min(w, h) - 16;
        return (
          <svg width={w} height={h} viewBox={`${-w / size} ${-h / size} ${(2 * w) / size} ${(2 * h) / size}`} data-slices={slices.length}>{slices}</svg>
        );
      }}
    </VizLayout>
  );
}

function Graph({ panel, data, width, height }) {
  return (
    <TimeSeries frames={data} structureRev={1} timeRange={timeRange} timeZone="utc" width={width} height={height} legend={panel.options.legend} options={panel.options} />
  );
}

function Table({ panel, data, width, height }) {
  return (
    <TableNG data={data[0]} width={width} height={height} noHeader={!panel.options.showHeader} cellHeight={panel.options.cellHeight}
      sortBy={panel.options.sortBy} enableVirtualization={false} fieldConfig={panel.fieldConfig} structureRev={1} />
  );
}

const KINDS = { stat: Stat, bargauge: Bars, piechart: Pie, timeseries: Graph, table: Table };

function Inside({ panel, data, width, height }) {
  const Kind = KINDS[panel.type];
  const has = data.some((frame) => frame.length > 0 && frame.fields.some((field) => field.values.some((value) => value != null)));
  if (!has) {
    return <div className="empty" style={{ width, height }}>{panel.fieldConfig.defaults.noValue ?? 'No data'}</div>;
  }
  return <Kind panel={panel} data={data} width={width} height={height} />;
}

function Drawn({ panels, width }) {
  const unit = (width - 2 * GAP + GAP) / 24;
  return (
    <div className="dashboard" style={{ width }}>
      <header>
        <h1>{dashboard.title}</h1>
        {dashboard.templating.list.map((variable) => (
          <span className="variable" key={variable.name}>
            <label>{variable.label}</label>
            <b>{variables[variable.name]}</b>
          </span>
        ))}
      </header>
      <main style={{ height: Math.max(...panels.map(({ panel }) => (panel.gridPos.y + panel.gridPos.h) * (CELL + GAP))) }}>
        {panels.map(({ panel, data }) => {
          const { x, y, w, h } = panel.gridPos;
          const place = { left: GAP + x * unit, top: y * (CELL + GAP), width: w * unit - GAP, height: h * (CELL + GAP) - GAP };
          return (
            <section key={panel.id} id={`panel-${panel.id}`} style={{ position: 'absolute', ...place }} data-type={panel.type}>
              {panel.type === 'row' ? <h2>⌄ {panel.title}</h2> : (
                <PanelChrome title={panel.title} description={panel.description} width={place.width} height={place.height}
                  padding={panel.type === 'table' ? 'none' : 'md'}>
                  {(width, height) => <Inside panel={panel} data={data} width={width} height={height} />}
                </PanelChrome>
              )}
            </section>
          );
        })}
      </main>
    </div>
  );
}

const CSS = `
  body { margin: 0; background: ${theme.colors.background.canvas}; color: ${theme.colors.text.primary}; font-family: ${theme.typography.fontFamily}; font-size: 14px; }
  header { display: flex; align-items: center; gap: 12px; padding: 12px 8px; }
  h1 { font-size: 18px; font-weight: 500; margin: 0 16px 0 4px; }
  h2 { font-size: 15px; font-weight: 500; margin: 4px; white-space: nowrap; }
  main { position: relative; }
  .variable { display: inline-flex; border: 1px solid ${theme.colors.border.medium}; border-radius: 2px; font-size: 12px; }
  .variable label { padding: 6px 8px; background: ${theme.colors.background.secondary}; }
  .variable b { padding: 6px 12px; font-weight: 400; background: ${theme.colors.background.primary}; }
  .empty { display: flex; align-items: center; justify-content: center; color: ${theme.colors.text.secondary}; }
`;

function Page({ panels }) {
  const [drawn, setDrawn] = useState(false);
  useEffect(() => {
    document.fonts.ready.then(() => setTimeout(() => setDrawn(true), 500));
  }, []);
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <style>{CSS}</style>
      <PanelContextProvider value={{ eventsScope: 'global', eventBus: new EventBusSrv(), sync: () => 0 }}>
        <Drawn panels={panels} width={window.innerWidth} />
      </PanelContextProvider>
      {drawn && <div id="drawn" />}
    </ThemeContext.Provider>
  );
}

// Text is measured before it is drawn.
Promise.all(['400 12px Inter', '500 14px Inter'].map((font) => document.fonts.load(font)))
  .then(() => Promise.all(dashboard.panels.map(async (panel) => ({ panel, data: panel.type === 'row' ? [] : await prepared(panel) }))))
  .then((panels) => createRoot(document.getElementById('root')).render(<Page panels={panels} />));
