// What Grafana's own types say of a dashboard, and of what its panels' plugins are given. Made into one JSON schema.
import type { Dashboard } from '@grafana/schema/dist/types/raw/dashboard/x/types.gen';
import type * as bargauge from '@grafana/schema/dist/types/raw/composable/bargauge/panelcfg/x/types.gen';
import type * as piechart from '@grafana/schema/dist/types/raw/composable/piechart/panelcfg/x/types.gen';
import type * as stat from '@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen';
import type * as table from '@grafana/schema/dist/types/raw/composable/table/panelcfg/x/types.gen';
import type * as timeseries from '@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen';

export interface Checked {
  dashboard: Dashboard;
  options: {
    bargauge: bargauge.Options;
    piechart: piechart.Options;
    stat: stat.Options;
    table: table.Options;
    timeseries: timeseries.Options;
  };
  custom: {
    piechart: Partial<piechart.FieldConfig>;
    table: Partial<table.FieldConfig>;
    timeseries: Partial<timeseries.FieldConfig>;
  };
}
